"""The gradient of RoIAlign to its map, as matrix products.

torchvision's backward pass adds with atomics on a GPU, in an order that changes from run to run, and on a CPU
one number at a time. The weights of the points of a box are a product of one along each side, so that the
gradient is rows^T (gradient of the bins) columns, summed over the boxes. Matrix products give the same bits
each time. Boxes that begin near each other are taken together, with the columns of tokens that they touch.

Legend: N boxes, B images, C channels, H x W tokens of a map, s bins along each side of a box, n boxes at
once, w columns of tokens that they touch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from swin_moe import gpu

NUMBERS_AT_ONCE = {"cpu": 2**20, "gpu": 2**24}  # between the two products, if boxes touched all columns


def roi_align_gradient(gradient: Tensor, rois: Tensor, shape: Sequence[int], scale: float) -> Tensor:
    """What `roi_align` hands back to its map.

    Args:
        gradient: (N, C, s, s) of the features.
        rois: (N, 5) the number of its image and the box, in pixels.
        shape: B, C, H and W of the map.
        scale: tokens of the map a pixel.

    Returns:
        (B, C, H, W), in channels-last memory.
    """
    images, channels, height, width = shape
    side = gradient.shape[-1]
    rows = bin_weights(rois[:, 2], rois[:, 4], side, height, scale)
    columns = bin_weights(rois[:, 1], rois[:, 3], side, width, scale)
    left, right = _touched(rois[:, 1], rois[:, 3], width, scale)
    image = rois[:, 0].long()
    order = (image * width + left).argsort(stable=True)
    counts, starts, ends = (
        x.tolist() for x in (torch.bincount(image, minlength=images), left[order], right[order])
    )
    numbers_at_once = NUMBERS_AT_ONCE["gpu" if gpu.on_gpu(gradient) else "cpu"]
    at_once = max(1, numbers_at_once // (side * width * channels))
    total = gradient.new_zeros(images, height, width, channels)
    end = 0
    for of_image, count in zip(total, counts, strict=True):
        begin, end = end, end + count
        for first in range(begin, end, at_once):
            part = slice(first, min(first + at_once, end))
            touched = slice(min(starts[part]), max(ends[part]))
            numbers = order[part]
            of_image[:, touched] += _product(gradient[numbers], rows[numbers], columns[numbers, :, touched])
    return total.permute(0, 3, 1, 2)


def _product(gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The sum over boxes of rows^T gradient columns: (n, C, s, s), (n, s, H), (n, s, w) -> (H, w, C)."""
    channels, side = gradient.shape[1:3]
    height, width = rows.shape[2], columns.shape[2]
    bins = gradient.permute(0, 2, 3, 1).reshape(-1, side, channels)  # (n * s, s, C)
    across = columns.transpose(1, 2).repeat_interleave(side, dim=0)  # (n * s, w, s)
    spread = torch.bmm(across, bins).view(-1, width * channels)
    return (rows.reshape(-1, height).t() @ spread).view(height, width, channels)


def _touched(start: Tensor, end: Tensor, tokens: int, scale: float) -> tuple[Tensor, Tensor]:
    """The first token along a side that a box may touch, and the one after the last: (N,) int64 each."""
    first = (start * scale - 0.5).floor().clamp(0, tokens - 1)
    last = (end * scale - 0.5).floor().clamp(0, tokens - 1)
    return first.long(), (torch.maximum(first, last) + 2).clamp_max(tokens).long()


def bin_weights(start: Tensor, end: Tensor, side: int, tokens: int, scale: float) -> Tensor:
    """How much each token along a side counts in the mean of each bin: (N, s, tokens).

    A bin has as many points as it has tokens, rounded up. A point is between two tokens; one beyond the
    outer tokens, up to a distance of one, is at the outer token, and others count as zero.

    Args:
        start: (N,) of the boxes, in pixels.
        end: (N,) of the boxes, in pixels.
        side: s.
        tokens: of the map along this side.
        scale: tokens of the map a pixel.
    """
    first, last = start * scale - 0.5, end * scale - 0.5
    bins = (last - first) / side
    points = bins.ceil().clamp_min(0)
    divisor = points.clamp_min(1)
    corners = first[:, None] + torch.arange(side, device=start.device) * bins[:, None]  # (N, s)
    token = torch.arange(tokens, device=start.device, dtype=start.dtype)
    weights = start.new_zeros(len(start), side, tokens)
    for number in range(int(points.max()) if len(points) else 0):
        place = corners + ((number + 0.5) * bins / divisor)[:, None]
        counted = (place >= -1) & (place <= tokens) & (number < points)[:, None]
        share = counted / divisor[:, None]
        distance = (place.clamp(0, tokens - 1)[..., None] - token).abs_()
        weights += distance.neg_().add_(1).clamp_min_(0).mul_(share[..., None])
    return weights
