"""Non-maximum suppression (torchvision's operator), by group and by class, and the order of scores.

Boxes that overlap one of a higher score by more than a threshold are removed. Of equal scores the one that
stands first counts as the higher, on every device.

Legend: N boxes, K classes, R boxes of an image with K scores each, D places for detections.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ClassDetections(NamedTuple):
    """What is left of the boxes of an image: a fixed number of places, by descending score."""

    boxes: Tensor  # (D, 4); zeros for places without a detection
    scores: Tensor  # (D,); 0 for places without a detection
    labels: Tensor  # (D,) int64; -1 for places without a detection
    rows: Tensor  # (D,) int64: which of the R boxes it was; 0 for places without a detection


@torch.no_grad()
def top_scores(scores: Tensor, count: int) -> Tensor:
    """The highest scores of each row: (..., N) fp32 -> (..., min(count, N)) int64, in descending order.

    Of equal scores the first comes first: `torch.topk` leaves that to the device. Here it sorts integers that
    are all different: the bits of the score, then its place.
    """
    bits = (scores.float() + 0.0).view(torch.int32).long()  # + 0: of the two zeros one is left
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative numbers have descending bits
    place = torch.arange(scores.shape[-1], device=scores.device)
    keys = (rising << 32) | (0xFFFFFFFF - place)
    return keys.topk(min(count, scores.shape[-1]), dim=-1, sorted=True).indices


@torch.no_grad()
def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int) -> Tensor:
    """The best boxes after non-maximum suppression inside of each group.

    Groups are kept apart by an offset that is larger than every box. The sums are fp64, where they are exact:
    in fp32 an offset of 80 classes of an image of 1333 pixels would round each box to 1/128 of a pixel.

    Whether a box stays depends on boxes of higher scores alone. So the boxes are compared in the order of
    their scores, and not beyond those that suffice.

    Args:
        boxes: (N, 4) of any coordinates.
        scores: (N,).
        groups: (N,) int64, at least 0: the class or the level of each.
        threshold: IoU above which the lower of two is removed.
        count: how many are wanted at most.

    Returns:
        (n,) int64, n <= count: numbers of the boxes, by descending score.
    """
    from torchvision import ops  # slow to import

    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    order = scores.argsort(descending=True, stable=True)
    apart = boxes.double()[order] + (groups[order] * _span(boxes))[:, None]
    falling = -torch.arange(len(order), device=boxes.device, dtype=torch.float64)
    compared = 0
    kept = order[:0]
    while len(kept) < count and compared < len(order):
        compared = max(2 * compared, 2 * count)
        kept = ops.nms(apart[:compared], falling[:compared], threshold)
    return order[kept[:count]]


def _span(boxes: Tensor) -> Tensor:
    """A whole number larger than the distance of any two coordinates: scalar fp64."""
    return (boxes.max().double() - boxes.min()).ceil() + 1


@torch.no_grad()
def class_nms(
    boxes: Tensor, scores: Tensor, valid: Tensor, *, score_threshold: float, nms_threshold: float, count: int
) -> ClassDetections:
    """The detections of an image: every class by itself, then the best of all classes.

    Args:
        boxes: (R, K, 4) a box for each class, or (R, 4) one for all classes.
        scores: (R, K) of the classes, without the background.
        valid: (R,) bool; other rows are no detections.
        score_threshold: detections have a higher score.
        nms_threshold: IoU above which the lower of two of a class is removed.
        count: D.
    """
    rows, labels = ((scores > score_threshold) & valid[:, None]).nonzero(as_tuple=True)
    boxes = boxes[rows] if boxes.dim() == 2 else boxes[rows, labels]
    scores = scores[rows, labels]
    kept = batched_nms(boxes, scores, labels, nms_threshold, count)
    return ClassDetections(
        boxes=fill_up(boxes[kept], count),
        scores=fill_up(scores[kept], count),
        labels=fill_up(labels[kept], count, -1),
        rows=fill_up(rows[kept], count),
    )


def fill_up(x: Tensor, count: int, value: float = 0) -> Tensor:
    """At most `count` rows, and rows of a value after them: (n, ...) -> (count, ...)."""
    missing = x.new_full((count - len(x), *x.shape[1:]), value)
    return torch.cat([x, missing])
