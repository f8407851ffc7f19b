"""Anchors: the boxes at every token of every level that a region proposal network scores and moves.

They are those of the published weights: sides are not rounded, and an anchor's centre is the top left corner
of its token, not the token's centre.

Legend: B images, L levels of H x W tokens, r ratios, A anchors of an image, n those of a level.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)  # height over width
Sides = tuple[int, int]  # height and width


def base_anchors(stride: int, scale: float, ratios: Sequence[float] = RATIOS) -> list[list[float]]:
    """The anchors of the token at the origin, of equal area: r lists of x1 y1 x2 y2.

    Args:
        stride: of the level, in pixels.
        scale: side of the square anchor, in strides.
        ratios: height over width of each anchor.
    """
    anchors = []
    for ratio in ratios:
        width, height = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
        anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return anchors


def grid_anchors(
    sides: Sequence[Sides],
    strides: Sequence[int],
    scale: float,
    ratios: Sequence[float] = RATIOS,
    device: torch.device | None = None,
) -> list[Tensor]:
    """The anchors of each level: L of (H * W * r, 4) fp32, row by row, those of a token side by side.

    Args:
        sides: H and W of each level.
        strides: of the levels, in pixels.
        scale: side of the square anchor, in strides.
        ratios: height over width of the anchors of a token.
        device: of the anchors.
    """
    levels = []
    for (height, width), stride in zip(sides, strides, strict=True):
        base = torch.tensor(base_anchors(stride, scale, ratios), device=device)  # (r, 4)
        y, x = (torch.arange(side, device=device) * stride for side in (height, width))
        y, x = y[:, None].expand(-1, width), x.expand(height, -1)
        levels.append((torch.stack([x, y, x, y], dim=-1)[:, :, None] + base).view(-1, 4))
    return levels


def valid_anchors(
    anchors: Sequence[Tensor],
    sides: Sequence[Sides],
    strides: Sequence[int],
    sizes: Tensor,
    *,
    border: int = -1,
    divisor: int = 32,
) -> Tensor:
    """Which anchors of all levels take part in training: (B, A) bool.

    They are those of tokens inside of an image, padded to a multiple of `divisor`, whatever canvas it is
    on. So they do not depend on the other images.

    Args:
        anchors: of each level, of `grid_anchors`.
        sides: H and W of each level.
        strides: of the levels, in pixels.
        sizes: (B, 2) height and width of each image without padding, in pixels.
        border: by how many pixels an anchor may stick out of its image, the limit itself excluded at the
            right and the bottom; negative: as far as it will.
        divisor: of the padded sides of an image.
    """
    padded = (sizes + divisor - 1) // divisor * divisor
    levels = []
    for level, (height, width), stride in zip(anchors, sides, strides, strict=True):
        tokens = (padded + stride - 1) // stride  # (B, 2)
        rows = torch.arange(height, device=sizes.device) < tokens[:, :1]  # (B, H)
        columns = torch.arange(width, device=sizes.device) < tokens[:, 1:]
        inside = rows[:, :, None] & columns[:, None]
        ratios = len(level) // (height * width)
        levels.append(inside.flatten(1).repeat_interleave(ratios, dim=1))
    valid = torch.cat(levels, dim=1)
    return valid if border < 0 else valid & _within(torch.cat(list(anchors)), sizes, border)


def _within(anchors: Tensor, sizes: Tensor, border: int) -> Tensor:
    """Which anchors (A, 4) stick out of their image by at most `border` pixels: (B, A)."""
    x1, y1, x2, y2 = anchors.unbind(-1)
    height, width = sizes[:, :1], sizes[:, 1:]
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)
