"""Auxiliary losses of routers: load balance, and the size of the logits.

A loss is computed inside each routing group and averaged over the groups. So it does not depend on how the
groups are spread over ranks and micro-batches.

Legend: G routing groups, S tokens a group, T = G * S, E experts, k choices a token.
"""

import torch
from torch import Tensor


def load_balance_loss(scores: Tensor, expert_index: Tensor, groups: int) -> Tensor:
    """GShard's loss: E * sum_e(mean score of e * fraction of first choices that took e).

    Lepikhin et al. 2020, section 2.2, with the sum over e instead of the mean and E twice: 1.0 is perfect
    balance.

    Args:
        scores: (T, E) rows that sum to 1.
        expert_index: (T, k) best first.
        groups: G.
    """
    num_experts = scores.shape[1]
    first = expert_index[:, :1] == torch.arange(num_experts, device=scores.device)  # (T, E)
    fraction = _by_group(first.to(scores.dtype), groups).mean(1)  # (G, E)
    return num_experts * (_by_group(scores, groups).mean(1) * fraction).sum(-1).mean()


def importance_loss(logits: Tensor, groups: int, *, tutel: bool = False) -> Tensor:
    """Squared coefficient of variation of the experts' summed scores (Riquelme et al. 2021, appendix A.1).

    Args:
        logits: (T, E) without noise.
        groups: G.
        tutel: as Tutel computes it, see `_squared_variation`.
    """
    return _squared_variation(_by_group(logits.softmax(-1), groups).sum(1), tutel).mean()


def importance_load_loss(
    logits: Tensor, threshold: Tensor, groups: int, *, noise_std: float, tutel: bool = False
) -> Tensor:
    """Mean of the importance loss and of the same for the load (Riquelme et al. 2021, appendices A.1, A.2).

    A token's load on an expert is the probability that another draw of the noise on this logit alone would
    lift it over the kth largest: 1 - Phi((threshold - logit) / noise_std). Tutel compares the softmax with
    that threshold, probabilities with logits: `tutel` keeps that.

    Args:
        logits: (T, E) without noise.
        threshold: (T, 1) kth largest logit with noise.
        groups: G.
        noise_std: standard deviation of the noise.
        tutel: the form that the released models were trained with.
    """
    wanted = logits.softmax(-1) if tutel else logits
    distance = ((wanted - threshold) / noise_std).clamp(-12.0, 12.0)  # Phi is 0 or 1 beyond, to 1e-32,
    load = torch.special.ndtr(distance)  # (T, E)                       and exp(-x^2 / 2) slow to underflow
    both = torch.stack([logits.softmax(-1), load])  # two losses with half of the launches
    totals = both.view(2, groups, -1, both.shape[-1]).sum(2)  # (2, G, E)
    return _squared_variation(totals, tutel).mean(1).mean()


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean over the tokens of logsumexp(logits)^2: (..., E) -> scalar (Zoph et al. 2022, eq. 5)."""
    return logits.logsumexp(-1).square().mean()


def _squared_variation(totals: Tensor, tutel: bool) -> Tensor:
    """(standard deviation / mean)^2 over the experts: (..., E) -> (...).

    Tutel divides the variance by E - 1 instead of E and guards the mean with 1e-10. One expert has none.
    """
    if tutel:
        unbiased = totals.var(-1, correction=min(1, totals.shape[-1] - 1))
        return unbiased / (totals.mean(-1).square() + 1e-10)
    return totals.var(-1, correction=0) / totals.mean(-1).square()


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(T, E) -> (G, S, E)."""
    return x.view(groups, -1, x.shape[1])
