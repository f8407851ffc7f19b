"""Losses: of the classification, and of a router's balance.

Legend: G routing groups, S tokens a group, T = G * S, E experts, B images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.router import Routing


def load_balance_loss(routing: Routing, groups: int) -> Tensor:
    """GShard's loss: E * sum_e(mean score of e * share of first choices that took e), mean over the groups.

    Each group's loss looks at its own tokens only, so in training the mean over groups is the same however
    the groups are spread over ranks and micro-batches (Lepikhin et al. 2020, section 2.2, with the sum over e
    instead of the mean and E twice: 1.0 is perfect balance).

    Returns:
        scalar, fp32.
    """
    num_experts = routing.scores.shape[1]
    first = F.one_hot(routing.expert_index[:, 0], num_experts).to(routing.scores.dtype)
    share = first.view(groups, -1, num_experts).mean(1)  # (G, E)
    score = routing.scores.view(groups, -1, num_experts).mean(1)  # (G, E)
    return num_experts * (score * share).sum(-1).mean()


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with smoothed labels in fp32, mean over the images: (B, classes), (B,) -> scalar."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def evaluation_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """What evaluation adds up over batches and ranks: weighted loss, top-1 hits, weight.

    Args:
        logits: (B, classes).
        labels: (B,).
        weights: (B,) 1, or 0 for an image that only pads the batch.

    Returns:
        (3,) float64.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    hits = (logits.argmax(-1) == labels).to(losses.dtype)
    return torch.stack([losses * weights, hits * weights, weights]).double().sum(1)
