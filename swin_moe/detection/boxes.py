"""Boxes: overlaps, clipping, and the offsets between two boxes that a detector regresses.

A box is x1 y1 x2 y2 in pixels; its width is x2 - x1. All is computed in fp32, or in fp64 if it is given so.

Legend: N, M boxes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swin_moe.moe.routers.base import to_fp32

SMALLEST_AREA = 1e-6  # an area that divides is at least this
SMALLEST_SIDE = 1e-6  # a side that divides, or of which the logarithm is taken, is at least this
LARGEST_RATIO = abs(math.log(16 / 1000))  # 4.135: bound of the logarithm by which a side is scaled


def area(boxes: Tensor) -> Tensor:
    """The areas of boxes: (..., 4) -> (...)."""
    x1, y1, x2, y2 = to_fp32(boxes).unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each box of `a` with each of `b`: (N, 4), (M, 4) -> (N, M).

    Two boxes without an area have 0.
    """
    inter = _intersection(a[:, None], b)
    union = (area(a)[:, None] + area(b)).sub_(inter)
    return inter.div_(union.clamp_min_(SMALLEST_AREA))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes in pairs: (..., 4), (..., 4) -> (...), in -1 .. 1.

    IoU minus the part of the smallest box around both that neither covers (Rezatofighi et al. 2019,
    arXiv:1902.09630, algorithm 1).
    """
    inter = _intersection(a, b)
    union = (area(a) + area(b) - inter).clamp_min(SMALLEST_AREA)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = to_fp32(a).unbind(-1), to_fp32(b).unbind(-1)
    width = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    height = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    around = (width * height).clamp_min(SMALLEST_AREA)
    return inter / union - (around - union) / around


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes cut at the borders of their image: (..., 4), (..., 2) -> (..., 4).

    Args:
        boxes: any number of them.
        sizes: height and width of their image; leading dimensions broadcast against those of the boxes.
    """
    height, width = sizes.to(boxes).unbind(-1)
    x1, y1, x2, y2 = boxes.unbind(-1)
    zero = torch.zeros((), dtype=boxes.dtype, device=boxes.device)
    columns = (x.clamp(zero, width) for x in (x1, x2))
    rows = (y.clamp(zero, height) for y in (y1, y2))
    (x1, x2), (y1, y2) = columns, rows
    return torch.stack([x1, y1, x2, y2], dim=-1)


class BoxCoder:
    """The offsets from one box to another, as a head predicts them (Girshick et al. 2014, appendix C).

    dx and dy are the distance between the centres in widths and heights of the first box, dw and dh the
    logarithms of the ratios of the sides, each divided by its standard deviation.

    Args:
        stds: of dx, dy, dw and dh.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.stds = tuple(stds)

    def encode(self, rois: Tensor, boxes: Tensor) -> Tensor:
        """The offsets that lead from `rois` to `boxes`: (..., 4), (..., 4) -> (..., 4).

        They are finite for boxes without a width or height too, such as those of padding.
        """
        (x, y, width, height), (bx, by, bwidth, bheight) = _centred(rois), _centred(boxes)
        width, height, bwidth, bheight = (
            side.clamp_min(SMALLEST_SIDE) for side in (width, height, bwidth, bheight)
        )
        deltas = ((bx - x) / width, (by - y) / height, (bwidth / width).log(), (bheight / height).log())
        return torch.stack([d / std for d, std in zip(deltas, self.stds, strict=True)], dim=-1)

    def decode(self, rois: Tensor, deltas: Tensor, size: Tensor | None = None) -> Tensor:
        """The boxes to which offsets lead: (..., 4), (..., 4) -> (..., 4).

        A side grows or shrinks at most by the factor 62.5, on both sides of 1.

        Args:
            rois: from which the offsets count; they broadcast against the deltas.
            deltas: the offsets.
            size: (..., 2) height and width of the image at which boxes are cut; None: they are not.
        """
        x, y, width, height = _centred(rois)
        dx, dy, dw, dh = (d * std for d, std in zip(to_fp32(deltas).unbind(-1), self.stds, strict=True))
        bx, by = x + width * dx, y + height * dy
        half_width = width * dw.clamp(-LARGEST_RATIO, LARGEST_RATIO).exp() / 2
        half_height = height * dh.clamp(-LARGEST_RATIO, LARGEST_RATIO).exp() / 2
        corners = (bx - half_width, by - half_height, bx + half_width, by + half_height)
        boxes = torch.stack(corners, dim=-1)
        return boxes if size is None else clip(boxes, size)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """The areas that boxes share: (..., 4) twice, broadcast -> (...)."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = to_fp32(a).unbind(-1), to_fp32(b).unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_min(0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_min(0)
    return width * height


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The centres, widths and heights of boxes: (..., 4) -> four of (...)."""
    x1, y1, x2, y2 = to_fp32(boxes).unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
