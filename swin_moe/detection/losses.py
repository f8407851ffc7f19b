"""The losses of a detector's heads on the regions of an image.

Each is a sum over an image's regions, divided by the number of places for regions and not by how many there
are, and then the mean over the images: it is linear in the images of a global batch, so that its mean over
micro-batches and ranks, whatever their number, is that of the batch. The published detectors divide by the
regions of a rank's images, which is the same number when every place is filled, as nearly always on COCO. The
mask loss is the mean over the positive regions of an image; the published one is that over a rank's images.

Legend: B images, R places for regions of an image, N = B * R, K classes, P positive regions, s mask side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.detection.boxes import BoxCoder, giou
from swin_moe.moe.routers.base import to_fp32

GIOU_WEIGHT = 10.0


def class_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the classes.

    Args:
        logits: (N, K + 1).
        labels: (B, R) of 0 .. K; K is the background.
        weight: (B, R) 0 for places without a region.

    Returns:
        A scalar.
    """
    losses = F.cross_entropy(to_fp32(logits), labels.flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.numel()


def l1_box_loss(deltas: Tensor, labels: Tensor, rois: Tensor, boxes: Tensor, coder: BoxCoder) -> Tensor:
    """The L1 distance to the offsets that lead to the object, in the columns of its class.

    Args:
        deltas: (N, K, 4) predicted offsets.
        labels: (B, R) of 0 .. K; regions of the background, K, have no object.
        rois: (B, R, 4) from which the offsets count.
        boxes: (B, R, 4) of the object of each region.
        coder: of the offsets.

    Returns:
        A scalar.
    """
    own, positive = _of_class(deltas, labels)
    distances = (own - coder.encode(rois, boxes)).abs().sum(-1)
    return _mean_over_places(distances, positive)


def giou_box_loss(deltas: Tensor, labels: Tensor, rois: Tensor, boxes: Tensor, coder: BoxCoder) -> Tensor:
    """Ten times 1 - GIoU of the decoded box, which is not clipped, and the object (Rezatofighi et al. 2019).

    Arguments and result as of `l1_box_loss`.
    """
    own, positive = _of_class(deltas, labels)
    losses = 1 - giou(coder.decode(rois, own), boxes)
    return GIOU_WEIGHT * _mean_over_places(losses, positive)


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor, image: Tensor, images: int) -> Tensor:
    """Binary cross-entropy in the channel of the object's class: the mean over the masks of an image.

    Args:
        logits: (P, K, s, s) of the positive regions of all images.
        labels: (P,) of 0 .. K - 1; of places without a region any.
        targets: (P, s, s) of 0 and 1.
        image: (P,) the image of each region, or -1 for a place without one.
        images: B.

    Returns:
        A scalar.
    """
    own = logits[torch.arange(len(labels), device=labels.device), labels.clamp(0, logits.shape[1] - 1)]
    losses = F.binary_cross_entropy_with_logits(to_fp32(own), targets.float(), reduction="none")
    by_image = image[:, None] == torch.arange(images, device=image.device)  # (P, B)
    counts = by_image.sum(0).clamp_min(1)
    shares = (by_image / counts).sum(1)  # 1 / regions of the own image, 0 without one
    return (losses.mean((1, 2)) * shares).sum() / images


def _of_class(deltas: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The offsets (B, R, 4) of each region's class, and which regions are positive (B, R)."""
    classes = deltas.shape[1]
    positive = labels < classes
    columns = torch.where(positive, labels, 0).flatten()
    own = to_fp32(deltas)[torch.arange(len(columns), device=columns.device), columns]
    return own.view(*labels.shape, 4), positive


def _mean_over_places(losses: Tensor, positive: Tensor) -> Tensor:
    """The sum over positive regions by the number of all places; both (B, R)."""
    return losses.masked_fill(~positive, 0.0).sum() / positive.numel()
