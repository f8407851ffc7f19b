"""Rotation, shear and translation as one affine look-up of source pixels, on PIL's pixel grid.

An output pixel whose centre (x + 1/2, y + 1/2) comes from (u, v) = A (x + 1/2, y + 1/2, 1) takes the fill
colour when (u, v) lies outside the picture, and otherwise an interpolation in which the border's pixels go
on, as PIL's Image.transform does it. B = pictures, H, W = their height and width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.augment.randaugment import Op

WARPS = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)


def matrices(ops: Tensor, arguments: Tensor, sides: tuple[int, int]) -> Tensor:
    """A, output to source pixels: ops (B,) of WARPS and arguments (B,) -> (B, 2, 3) float32.

    `sides` is (H, W). A rotation is about the picture's centre (x, y) = (W / 2, H / 2).
    """
    value, zero = arguments.double(), torch.zeros_like(arguments, dtype=torch.float64)
    of = {op: torch.where(ops == op, value, zero) for op in WARPS}
    angle = torch.deg2rad(of[Op.ROTATE])
    cos, sin, y, x = angle.cos(), angle.sin(), sides[0] / 2, sides[1] / 2
    aside = (y - x) * sin  # exactly 0 for a square
    rows = [
        (cos, of[Op.SHEAR_X] - sin, x * (1 - cos + sin) + aside + of[Op.TRANSLATE_X]),
        (of[Op.SHEAR_Y] + sin, cos, y * (1 - cos - sin) + aside + of[Op.TRANSLATE_Y]),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2).float()


def warp(pictures: Tensor, matrices: Tensor, fill: Tensor, mode: str) -> Tensor:
    """Transform (B, 3, H, W) uint8 by matrices (B, 2, 3); fill (3,) uint8, mode bilinear or bicubic."""
    height, width = pictures.shape[-2:]
    y, x = (torch.arange(side, device=pictures.device) + 0.5 for side in (height, width))
    a = matrices[:, :, None, None]  # (B, 2, 1, 1, 3)
    u, v = (a[..., 0] * x + a[..., 1] * y[:, None] + a[..., 2]).unbind(1)  # each (B, H, W)
    grid = torch.stack([u * (2 / width) - 1, v * (2 / height) - 1], -1)
    sampled = F.grid_sample(pictures.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return torch.where(inside[:, None], to_uint8(sampled), fill[:, None, None])


def to_uint8(values: Tensor) -> Tensor:
    """PIL truncates; the margin keeps 127.9999 of float32, which is 128 in float64, what it is."""
    return (values + 2.0**-8).clamp(0.0, 255.0).to(torch.uint8)
