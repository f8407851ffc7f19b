"""The stages of box heads: what each is trained on, and how it hands its boxes to the next.

Mask R-CNN is a cascade of one stage. That of Cascade Mask R-CNN (Cai & Vasconcelos 2019, arXiv:1906.09756)
has three of rising quality, each trained on the boxes of the one before.

Legend: B images, P proposals of an image, R places for regions of an image, K classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from swin_moe.detection.assign import IGNORED, assign
from swin_moe.detection.box_head import BoxPredictions
from swin_moe.detection.boxes import BoxCoder
from swin_moe.detection.config import DetectorConfig, DetectorKind
from swin_moe.detection.losses import giou_box_loss, l1_box_loss
from swin_moe.detection.sample import sample
from swin_moe.detection.targets import Targets, take_objects
from swin_moe.moe.routers.base import to_fp32
from swin_moe.random.keyed import fold_in

ROI_SITE = -10  # of the draws of the first stage, then -11, -12; the sites of a backbone count from 0

BoxLoss = Callable[[Tensor, Tensor, Tensor, Tensor, BoxCoder], Tensor]


class Stage(NamedTuple):
    """What one stage is, and what it learns."""

    loss_weight: float  # of its losses
    iou: float  # from which a region is positive; below it is of the background
    stds: tuple[float, float, float, float]  # of the offsets that it predicts
    low_quality: bool  # whether an object gets its best region, see `assign`
    box_loss: BoxLoss
    convs: int  # of its box head
    fcs: int


STAGES: dict[DetectorKind, tuple[Stage, ...]] = {
    "mask_rcnn": (Stage(1.0, 0.5, (0.1, 0.1, 0.2, 0.2), True, l1_box_loss, convs=0, fcs=2),),
    "cascade_mask_rcnn": (
        Stage(1.0, 0.5, (0.1, 0.1, 0.2, 0.2), False, giou_box_loss, convs=4, fcs=1),
        Stage(0.5, 0.6, (0.05, 0.05, 0.1, 0.1), False, giou_box_loss, convs=4, fcs=1),
        Stage(0.25, 0.7, (0.033, 0.033, 0.067, 0.067), False, giou_box_loss, convs=4, fcs=1),
    ),
}


class Regions(NamedTuple):
    """Boxes of images: a fixed number of places for each."""

    boxes: Tensor  # (B, P, 4) fp32 in pixels of the canvas
    valid: Tensor  # (B, P) bool


class RegionSample(NamedTuple):
    """The regions that a stage is trained on; positive ones stand in the first places."""

    boxes: Tensor  # (B, R, 4) fp32; zeros for places without a region
    weight: Tensor  # (B, R) fp32: 1, or 0 for places without a region
    owner: Tensor  # (B, R) int64: the object of a positive region, -1 for others
    labels: Tensor  # (B, R) int64: the class of the object, K for others
    is_object: Tensor  # (B, R) bool: whether it is the box of an object itself, which was added


@torch.no_grad()
def draw_regions(
    regions: Regions,
    targets: Targets,
    keys: Tensor,
    stage: Stage,
    number: int,
    config: DetectorConfig,
    num_classes: int,
) -> RegionSample:
    """Give each region an object, add the objects' own boxes, and draw a fixed number of an image.

    The boxes of objects are added after the regions were given theirs (published code puts them in front).
    Here they are the last, so that the number of a region, which decides its draw, does not depend on how
    many objects the other images of a batch have.

    Args:
        regions: proposals, or what the stage before made of them.
        targets: the objects.
        keys: (B,) of the images.
        stage: whose sample it is.
        number: of the stage, from 0.
        config: how many regions are drawn.
        num_classes: K.
    """
    images = zip(regions.boxes, regions.valid, targets.boxes, targets.valid, strict=True)
    iou = stage.iou
    assigned = torch.stack(
        [assign(one, gt, real, iou, iou, iou, stage.low_quality, there) for one, there, gt, real in images]
    )
    own = torch.arange(targets.labels.shape[1], device=assigned.device)
    assigned = torch.cat([assigned, torch.where(targets.valid, own, IGNORED)], dim=1)
    candidates = torch.cat([regions.boxes, targets.boxes], dim=1)
    drawn = sample(assigned, None, fold_in(keys, ROI_SITE - number), config.roi_samples, config.roi_positives)
    owner = assigned.gather(1, drawn.indices).masked_fill(drawn.weight == 0, -1)
    boxes = candidates.gather(1, drawn.indices[..., None].expand(-1, -1, 4)) * drawn.weight[..., None]
    labels = take_objects(targets.labels, owner).masked_fill(owner < 0, num_classes)
    is_object = (drawn.indices >= regions.boxes.shape[1]) & (drawn.weight > 0)
    return RegionSample(boxes, drawn.weight, owner, labels, is_object)


@torch.no_grad()
def refine(
    boxes: Tensor, predictions: BoxPredictions, coder: BoxCoder, sizes: Tensor, labels: Tensor | None = None
) -> Tensor:
    """The boxes to which the offsets of one class lead, clipped to the image; no gradient flows through them.

    Args:
        boxes: (B, R, 4) of the regions.
        predictions: of a stage.
        coder: of its offsets.
        sizes: (B, 2) height and width of the images without padding.
        labels: (B, R) the class of each region. That of highest logit except the background is taken where it
            is K, and for all regions without labels.

    Returns:
        (B, R, 4).
    """
    logits, deltas = predictions
    foreground = to_fp32(logits)[:, :-1].argmax(1)
    if labels is not None:
        flat = labels.flatten()
        foreground = torch.where(flat < deltas.shape[1], flat, foreground)
    own = deltas[torch.arange(len(deltas), device=deltas.device), foreground]
    return coder.decode(boxes, own.view(boxes.shape), sizes[:, None])


def next_regions(drawn: RegionSample, predictions: BoxPredictions, coder: BoxCoder, sizes: Tensor) -> Regions:
    """What the next stage of training begins with: refined regions, without the added boxes of objects.

    A positive region is refined by the offsets of its object's class, another by those of the class that is
    the most likely beside the background.
    """
    boxes = refine(drawn.boxes, predictions, coder, sizes, drawn.labels)
    return Regions(boxes, (drawn.weight > 0) & ~drawn.is_object)
