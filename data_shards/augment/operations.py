"""Apply one operation to each sample: each kind to the samples that drew it, and to no others.

The host knows which samples those are, so nothing is read back from the device, and a batch costs what its
own operations cost. Look-up-table operations are in lut.py; here are colour, sharpness and the warps.

A warp is one affine look-up of source pixels on PIL's pixel grid. An output pixel whose centre
(x + 1/2, y + 1/2) comes from (u, v) = A (x + 1/2, y + 1/2, 1) takes the fill colour when (u, v) lies outside
the image. Otherwise it is an interpolation that repeats the border's pixels, as PIL's Image.transform does.

Legend: B images of H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.augment.lut import TABLES, blend, look_up, luma
from data_shards.augment.randaugment import ImageOp
from parallel.ranks.host import send

WARPS = (ImageOp.ROTATE, ImageOp.SHEAR_X, ImageOp.SHEAR_Y, ImageOp.TRANSLATE_X, ImageOp.TRANSLATE_Y)


def operate(images: Tensor, ops: Tensor, arguments: Tensor, fill: Tensor, resample: str) -> None:
    """Apply to each image its operation, in place.

    images (B, 3, H, W) uint8 and fill (3,) uint8 on any device; ops (B,) int64 of `ImageOp` and arguments
    (B,) float32 on the host; resample bilinear or bicubic.
    """
    _apply_tables(images, ops, arguments)
    rows = torch.isin(ops, torch.tensor(WARPS)).nonzero()[:, 0]
    if len(rows):
        at = send(rows, images.device)
        sides = images.shape[-2], images.shape[-1]
        maps = send(matrices(ops[rows], arguments[rows], sides), images.device)
        images.index_copy_(0, at, warp(images.index_select(0, at), maps, fill, resample))
    for op, degenerate in {ImageOp.COLOR: gray, ImageOp.SHARPNESS: smooth}.items():
        rows = (ops == op).nonzero()[:, 0]
        if len(rows):
            at, factors = send(rows, images.device), send(arguments[rows], images.device)
            chosen = images.index_select(0, at)
            images.index_copy_(0, at, blend(degenerate(chosen), chosen, factors[:, None, None, None]))


def _apply_tables(images: Tensor, ops: Tensor, arguments: Tensor) -> None:
    """All look-up-table operations: one table per image, then one look-up."""
    drawn = {op: rows for op in TABLES if len(rows := (ops == op).nonzero()[:, 0])}
    if not drawn:
        return
    rows = torch.cat(list(drawn.values()))
    at, sent = send(rows, images.device), send(arguments[rows], images.device)
    counts = [len(part) for part in drawn.values()]
    chosen = images.index_select(0, at)
    parts = zip(drawn, chosen.split(counts), sent.split(counts), strict=True)
    tables = torch.cat([TABLES[op](part, values) for op, part, values in parts])
    images.index_copy_(0, at, look_up(chosen, tables))


def gray(images: Tensor) -> Tensor:
    """The image that COLOR blends with: (B, 3, H, W) uint8 -> (B, 1, H, W)."""
    return luma(images)[:, None]


def smooth(images: Tensor) -> Tensor:
    """The image that SHARPNESS blends with, PIL's ImageFilter.SMOOTH.

    The kernel (1 1 1, 1 5 1, 1 1 1) / 13 applies within the border; the border stays.
    """
    values = images.float()  # sums of up to 13 * 255 are exact
    if min(images.shape[-2:]) < 3:  # nothing lies within the border
        return values
    inner = F.avg_pool2d(values, 3, stride=1, divisor_override=1) + 4 * values[..., 1:-1, 1:-1]
    values[..., 1:-1, 1:-1] = ((2 * inner + 13) / 26).floor()  # rounded; never a tie, 13 being odd
    return values


def matrices(ops: Tensor, arguments: Tensor, sides: tuple[int, int]) -> Tensor:
    """A, output to source pixels: ops (B,) of WARPS and arguments (B,) -> (B, 2, 3) float32.

    `sides` is (H, W). A rotation is about the image's centre (x, y) = (W / 2, H / 2).
    """
    value, zero = arguments.double(), torch.zeros_like(arguments, dtype=torch.float64)
    of = {op: torch.where(ops == op, value, zero) for op in WARPS}
    angle = torch.deg2rad(of[ImageOp.ROTATE])
    cos, sin, y, x = angle.cos(), angle.sin(), sides[0] / 2, sides[1] / 2
    aside = (y - x) * sin  # exactly 0 for a square
    rows = [
        (cos, of[ImageOp.SHEAR_X] - sin, x * (1 - cos + sin) + aside + of[ImageOp.TRANSLATE_X]),
        (of[ImageOp.SHEAR_Y] + sin, cos, y * (1 - cos - sin) + aside + of[ImageOp.TRANSLATE_Y]),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2).float()


def warp(images: Tensor, matrices: Tensor, fill: Tensor, mode: str) -> Tensor:
    """Transform (B, 3, H, W) uint8 by matrices (B, 2, 3); fill (3,) uint8, mode bilinear or bicubic."""
    height, width = images.shape[-2:]
    y, x = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    a = matrices[:, :, None, None]  # (B, 2, 1, 1, 3)
    u, v = (a[..., 0] * x + a[..., 1] * y[:, None] + a[..., 2]).unbind(1)  # each (B, H, W)
    grid = torch.stack([u * (2 / width) - 1, v * (2 / height) - 1], -1)
    sampled = F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return torch.where(inside[:, None], to_uint8(sampled), fill[:, None, None])


def to_uint8(values: Tensor) -> Tensor:
    """Truncate, as PIL does; the margin keeps 128 of float64 that is 127.9999 in float32."""
    return (values + 2.0**-8).clamp(0.0, 255.0).to(torch.uint8)
