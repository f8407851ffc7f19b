"""Rotation, shear and translation as one affine look-up of source pixels, on PIL's pixel grid.

An output pixel whose centre (x + 1/2, y + 1/2) comes from (u, v) = A (x + 1/2, y + 1/2, 1) takes the fill
colour when (u, v) lies outside the picture, and otherwise an interpolation in which the border's pixels go
on, as PIL's Image.transform does it. B = pictures, S = their side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.randaugment import Op

WARPS = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)


def matrices(ops: Tensor, arguments: Tensor, size: int) -> Tensor:
    """A, output to source pixels: ops (B,) of WARPS and arguments (B,) -> (B, 2, 3) float32."""
    value, zero = arguments.double(), torch.zeros_like(arguments, dtype=torch.float64)
    of = {op: torch.where(ops == op, value, zero) for op in WARPS}
    angle = torch.deg2rad(of[Op.ROTATE])
    cos, sin, centre = angle.cos(), angle.sin(), size / 2
    rows = [
        (cos, of[Op.SHEAR_X] - sin, centre * (1 - cos + sin) + of[Op.TRANSLATE_X]),
        (of[Op.SHEAR_Y] + sin, cos, centre * (1 - cos - sin) + of[Op.TRANSLATE_Y]),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2).float()


def warp(pictures: Tensor, matrices: Tensor, fill: Tensor, mode: str) -> Tensor:
    """Transform (B, 3, S, S) uint8 by matrices (B, 2, 3); fill (3,) uint8, mode bilinear or bicubic."""
    size = pictures.shape[-1]
    centres = torch.arange(size, device=pictures.device) + 0.5
    a = matrices[:, :, None, None]  # (B, 2, 1, 1, 3)
    source = a[..., 0] * centres + a[..., 1] * centres[:, None] + a[..., 2]  # (B, 2, S, S): u and v
    grid = (source * (2 / size) - 1).permute(0, 2, 3, 1)
    sampled = F.grid_sample(pictures.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    inside = ((source >= 0) & (source < size)).all(1, keepdim=True)
    return torch.where(inside, to_uint8(sampled), fill[:, None, None])


def to_uint8(values: Tensor) -> Tensor:
    """PIL truncates; the margin keeps 127.9999 of float32, which is 128 in float64, what it is."""
    return (values + 2.0**-8).clamp(0.0, 255.0).to(torch.uint8)
