"""Bilinear resizing and average pooling of maps, each as two small matrix products: over rows, over columns.

On a GPU the backward passes of `F.interpolate` and `F.adaptive_avg_pool2d` add with atomics, in an order that
changes from run to run (PyTorch issues 108341 and 149130). The backward pass of a matrix product is one too,
and gives the same bits each time. Products are fp32, also in autocast and of
bf16 maps; those of fp64 maps are fp64.

Legend: B images, C channels, H x W tokens of a map, h x w tokens of the result.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from swin_moe.moe.routers.base import to_fp32


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly: (B, C, H, W) -> (B, C, h, w) of the same dtype, in channels-last memory.

    It equals `F.interpolate(x, size, mode="bilinear", align_corners=False)` without antialiasing: a value is
    a weighted mean of at most 2 x 2 neighbours, also where a map is made smaller.

    Args:
        x: the maps.
        size: h and w.
    """
    if x.shape[2:] == size:
        return x
    rows = bilinear_matrix(x.shape[2], size[0], x.device)
    columns = bilinear_matrix(x.shape[3], size[1], x.device)
    return _along_both(x, rows, columns)


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """Average maps over bins x bins rectangles: (B, C, H, W) -> (B, C, bins, bins) of the same dtype.

    It equals `F.adaptive_avg_pool2d(x, bins)`: rectangles overlap where `bins` does not divide a side.

    Args:
        x: the maps.
        bins: along each side; it may be more than H or W.
    """
    rows, columns = (average_matrix(side, bins, x.device) for side in x.shape[2:])
    return _along_both(x, rows, columns)


def resize_band(x: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """Some rows of the resized maps, for evaluation: (B, C, H, W) -> (B, C, number of rows, w).

    Each value is computed by itself, so that bands of any height put together have the bits of the whole,
    `resize_band(x, size, slice(None))`. They are those of `resize` up to rounding. A backward pass would add
    with atomics on a GPU: training calls `resize`.

    Args:
        x: the maps.
        size: h and w of all rows.
        rows: of 0 .. h - 1.
    """
    dtype, x = x.dtype, to_fp32(x)
    rows_of, columns_of = (_neighbours(side, after, x) for side, after in zip(x.shape[2:], size, strict=True))
    return _between(x, [one[rows] for one in rows_of], columns_of).to(dtype)


def resize_twice_band(x: Tensor, between: tuple[int, int], size: tuple[int, int], rows: slice) -> Tensor:
    """Some rows of maps that are resized to `between` and then to `size`, as `resize_band` gives them.

    Only those rows of the first result are computed that the second one needs.

    Args:
        x: the maps (B, C, H, W).
        between: sides of all rows of the first result.
        size: h and w of all rows of the second.
        rows: of 0 .. h - 1.
    """
    if between == size:  # the second step would leave every value as it is
        return resize_band(x, size, rows)
    dtype, x = x.dtype, to_fp32(x)
    rows_of, columns_of = (_neighbours(side, after, x) for side, after in zip(between, size, strict=True))
    top, bottom, down = (one[rows] for one in rows_of)
    first = int(top.min())
    part = resize_band(x, between, slice(first, int(bottom.max()) + 1))
    return _between(part, (top - first, bottom - first, down), columns_of).to(dtype)


def _between(x: Tensor, rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """Values between two rows and two columns each, see `_neighbours`: (B, C, H, W) -> (B, C, h, w)."""
    (top, bottom, down), (left, right, across) = rows, columns
    down = down[:, None]
    y = x[:, :, top] * (1 - down) + x[:, :, bottom] * down
    return y[..., left] * (1 - across) + y[..., right] * across


def bilinear_matrix(before: int, after: int, device: torch.device) -> Tensor:
    """The weights by which a side of `before` tokens becomes one of `after`: (after, before) fp64.

    Centres of tokens lie at (i + 0.5) / side (align_corners False); beyond the outer ones the edge goes on.
    """
    tokens = torch.arange(before, dtype=torch.float64, device=device)
    return (1 - (_sources(before, after, device)[:, None] - tokens).abs()).clamp_min(0)


def average_matrix(before: int, bins: int, device: torch.device) -> Tensor:
    """The weights of the means over bins of a side: (bins, before) fp64.

    Bin b is from floor(b * before / bins) to ceil((b + 1) * before / bins), the end excluded.
    """
    tokens, number = torch.arange(before, device=device), torch.arange(bins, device=device)[:, None]
    start, end = number * before // bins, -(-(number + 1) * before // bins)
    return ((tokens >= start) & (tokens < end)).double() / (end - start)


def _sources(before: int, after: int, device: torch.device) -> Tensor:
    """Where the tokens of the result lie among those before, in 0 .. before - 1: (after,) fp64."""
    centres = torch.arange(after, dtype=torch.float64, device=device) + 0.5
    return (centres * (before / after) - 0.5).clamp(0, before - 1)


def _neighbours(before: int, after: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two tokens beside each token of the result, and the weight of the second: (after,) each."""
    sources = _sources(before, after, like.device)
    first = sources.floor()
    second = (first + 1).clamp_max(before - 1)
    return first.long(), second.long(), (sources - first).to(like.dtype)


def _along_both(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply the rows and the columns of maps: (B, C, H, W), (h, H), (w, W) -> (B, C, h, w).

    With the channels last, each product is one of large matrices, and the class logits of a pixel lie side by
    side for the loss.
    """
    images, channels, height, width = x.shape
    y = to_fp32(x).permute(0, 2, 3, 1).reshape(images, height, width * channels)
    rows, columns = rows.to(y.dtype), columns.to(y.dtype)
    with _without_autocast(x.device):
        y = torch.bmm(rows.expand(images, -1, -1), y).reshape(images * len(rows), width, channels)
        y = torch.bmm(columns.expand(len(y), -1, -1), y)
    return y.view(images, len(rows), len(columns), channels).permute(0, 3, 1, 2).to(x.dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
