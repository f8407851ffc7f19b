"""The loss of a classifier, and the sums by which it is evaluated.

Legend: B images.
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
