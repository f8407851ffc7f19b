"""The gradient of RoIAlign to its map, as matrix products.

torchvision's backward pass adds with atomics on a GPU, in an order that changes from run to run, and on a CPU
one number at a time. The weights of the points of a box are a product of one along each side, so that the
gradient is rows^T (gradient of the bins) columns, summed over the boxes. Matrix products give the same bits
each time.

Legend: N boxes, B images, C channels, H x W tokens of a map, s bins along each side of a box, n boxes at
once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from swin_moe import gpu

NUMBERS_AT_ONCE = {"cpu": 2**20, "gpu": 2**26}  # between the two products: what fits a cache; few launches


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
    image = rois[:, 0].long()
    by_image = image.argsort(stable=True).split(torch.bincount(image, minlength=images).tolist())
    numbers_at_once = NUMBERS_AT_ONCE["gpu" if gpu.on_gpu(gradient) else "cpu"]
    at_once = max(1, numbers_at_once // (side * width * channels))
    total = gradient.new_zeros(images, height, width * channels)
    for of_image, numbers in zip(total, by_image, strict=True):
        for part in numbers.split(at_once):
            bins = gradient[part].permute(0, 2, 3, 1).reshape(-1, side, channels)  # (n * s, s, C)
            across = columns[part].transpose(1, 2).repeat_interleave(side, dim=0)  # (n * s, W, s)
            spread = torch.bmm(across, bins).view(-1, width * channels)
            of_image.addmm_(rows[part].view(-1, height).t(), spread)
    return total.view(images, height, width, channels).permute(0, 3, 1, 2)


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
