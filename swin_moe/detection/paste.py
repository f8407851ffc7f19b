"""Masks of detections at the size of their image.

A pixel is in the mask where the probabilities of the box, interpolated bilinearly at the pixel's centre, are
at least 0.5; beyond the outer probabilities they fall to zero. Every pixel is computed by itself, with the
same operations on all devices.

Legend: N masks of s x s probabilities, H x W pixels of the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe import gpu

THRESHOLD = 0.5
PIXELS_AT_ONCE = 2**26  # on a GPU, at 16 bytes each


@torch.no_grad()
def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of an image belong to each mask.

    On a CPU only the pixels around a box are computed. No other can reach 0.5: outside of the box, more than
    half of the weight is on zeros.

    Args:
        masks: (N, s, s) probabilities.
        boxes: (N, 4) in pixels of the image; one without an area has no pixel.
        size: H and W.

    Returns:
        (N, H, W) bool.
    """
    height, width = size
    masks, boxes = F.pad(masks.float(), (1, 1, 1, 1)), boxes.float()  # a border of zeros
    if gpu.on_gpu(masks):
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        pieces = zip(masks.split(at_once), boxes.split(at_once), strict=True)
        whole = [_inside(m, b, range(height), range(width)) for m, b in pieces]
        return torch.cat(whole) if whole else masks.new_zeros((0, height, width), dtype=torch.bool)
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool)
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        rows, columns = _around(y1, y2, height), _around(x1, x2, width)
        if rows and columns:
            one = slice(number, number + 1)
            part = _inside(masks[one], boxes[one], rows, columns)
            pasted[number, rows.start : rows.stop, columns.start : columns.stop] = part[0]
    return pasted


def _around(start: float, end: float, side: int) -> range:
    """The pixels of a side of the image that a box may cover, and one more at each end."""
    return range(max(0, min(side, int(start) - 1)), max(0, min(side, int(end) + 2)))


def _inside(masks: Tensor, boxes: Tensor, rows: range, columns: range) -> Tensor:
    """Some pixels of the masks (N, s + 2, s + 2), which have a border of zeros: (N, rows, columns) bool."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    side = masks.shape[-1]
    top, bottom, down = _neighbours(y1, y2, rows, side)
    left, right, across = _neighbours(x1, x2, columns, side)
    down, across = down[..., None], across[:, None]
    y = _rows(masks, top) * (1 - down) + _rows(masks, bottom) * down  # (N, rows, s + 2)
    y = y.transpose(1, 2)
    y = _rows(y, left).transpose(1, 2) * (1 - across) + _rows(y, right).transpose(1, 2) * across
    there = (x2 > x1) & (y2 > y1)
    return (y >= THRESHOLD) & there[:, None, None]


def _neighbours(start: Tensor, end: Tensor, pixels: range, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two probabilities beside each pixel along a side, and the weight of the second: (N, n) each."""
    extent = torch.where(end > start, end - start, 1.0)[:, None]
    centres = torch.arange(pixels.start, pixels.stop, device=start.device) + 0.5
    place = (centres - start[:, None]) / extent * (side - 2) + 0.5  # the first probability has the place 1
    first = place.floor()
    before, after = (x.clamp(0, side - 1).long() for x in (first, first + 1))
    return before, after, place - first


def _rows(x: Tensor, numbers: Tensor) -> Tensor:
    """Rows of each mask by their numbers: (N, a, b), (N, n) -> (N, n, b)."""
    return x.gather(1, numbers[..., None].expand(-1, -1, x.shape[2]))
