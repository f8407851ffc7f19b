"""Which object each box should find: by overlap (Ren et al. 2015, arXiv:1506.01497, section 3.1.2).

Legend: N boxes (anchors or proposals) of an image, G places for objects.
"""

import torch
from torch import Tensor

from swin_moe.detection.boxes import pairwise_iou

NEGATIVE, IGNORED = -1, -2  # what `assign` says of a box without an object


@torch.no_grad()
def assign(
    boxes: Tensor,
    gt: Tensor,
    gt_valid: Tensor,
    positive: float,
    negative: float,
    min_positive: float,
    low_quality: bool,
    valid: Tensor | None = None,
) -> Tensor:
    """The object of each box: its number, `NEGATIVE` or `IGNORED`.

    A box gets the object that it overlaps most if their IoU is at least `positive`; of several such objects,
    the first. It is negative if all its IoUs are below `negative`. With `low_quality`, each object whose best
    IoU is at least `min_positive` is then given to all boxes that have exactly this IoU with it, whatever
    they had; of several such objects of a box the last one stays. So the order of the objects matters.
    Without any object all boxes are negative.

    Args:
        boxes: (N, 4) in pixels.
        gt: (G, 4) the objects.
        gt_valid: (G,) bool, False for padding.
        positive: least IoU of a positive box.
        negative: IoU below which a box is negative.
        min_positive: least IoU of an object's best box.
        low_quality: whether objects get their best boxes.
        valid: (N,) bool; other boxes are ignored, and are no object's best. None: all are valid.

    Returns:
        (N,) int64: 0 .. G - 1, -1 or -2.
    """
    if valid is None:
        valid = boxes.new_ones(len(boxes), dtype=torch.bool)
    assigned = torch.full((len(boxes),), IGNORED, device=boxes.device)
    if gt.shape[0] == 0 or boxes.shape[0] == 0:
        return assigned.masked_fill_(valid, NEGATIVE)
    iou = pairwise_iou(gt, boxes)  # (G, N)
    iou.masked_fill_(~(gt_valid[:, None] & valid), -1.0)
    best, owner = iou.max(dim=0)  # of equal ones the first
    assigned.masked_fill_(best < negative, NEGATIVE)
    assigned = torch.where(best >= positive, owner, assigned)
    if low_quality:
        last = _last_of_best(iou, min_positive, gt_valid)
        assigned = torch.where(last >= 0, last, assigned)
    return assigned.masked_fill_(~valid, IGNORED)


def _last_of_best(iou: Tensor, min_positive: float, gt_valid: Tensor) -> Tensor:
    """The last object of which a box is a best one: (G, N), (G,) -> (N,) int64, -1 for no object."""
    best = iou.amax(dim=1, keepdim=True)  # (G, 1)
    is_best = (iou == best) & (best >= min_positive) & gt_valid[:, None]
    numbers = torch.arange(len(iou), dtype=torch.int32, device=iou.device)
    return torch.where(is_best, numbers[:, None], -1).amax(dim=0).long()
