"""The losses of a classifier, and the sums by which it is evaluated.

Legend: B images, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with smoothed targets in fp32, mean over the images.

    Args:
        logits: (B, classes).
        targets: (B,) int64 labels, or (B, classes) probabilities of mixed images.
        label_smoothing: of the probability that is spread over all classes.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    *,
    target_threshold: float | None = None,
    sum_classes: bool = False,
) -> Tensor:
    """Binary cross-entropy of each class by itself in fp32, mean over the images.

    As in "ResNet strikes back" (Wightman et al. 2021, arXiv:2110.00476, section 2) and timm's
    `BinaryCrossEntropy`: every class of an image is a problem of its own, so that the two classes of a mixed
    image can both be targets.

    Args:
        logits: (B, K).
        targets: (B,) int64 labels, or (B, K) probabilities of mixed images.
        label_smoothing: of the probability that is spread over all classes, before the threshold.
        target_threshold: a probability above it becomes 1, any other 0; None takes the probabilities.
        sum_classes: add the losses of an image's classes; otherwise their mean is taken.
    """
    logits = logits.float()
    classes = logits.shape[-1]
    soft = F.one_hot(targets, classes).float() if targets.dim() == 1 else targets.float()
    soft = (1 - label_smoothing) * soft + label_smoothing / classes
    if target_threshold is not None:
        soft = (soft > target_threshold).float()
    loss = F.binary_cross_entropy_with_logits(logits, soft)
    return loss * classes if sum_classes else loss


def evaluation_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """What evaluation adds up over batches and ranks: weighted loss, top-1 and top-5 hits, weight.

    Args:
        logits: (B, classes).
        labels: (B,).
        weights: (B,) 1, or 0 for an image that only pads the batch.

    Returns:
        (4,) float64.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices  # best first
    hits = (best == labels[:, None]).to(losses.dtype)
    rows = [losses, hits[:, 0], hits.sum(-1), torch.ones_like(losses)]
    return (torch.stack(rows) * weights).double().sum(1)
