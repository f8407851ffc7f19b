"""What a router decides by, and what it decides.

Legend: T tokens, C channels, E experts, k choices a token, G routing groups, S = T / G tokens a group,
B images, L tokens an image. To add a router: one class with the interface of Router, named by its dotted path
or with an entry in `ROUTERS` of `__init__.py`: docs/extending.md.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from swin_moe.moe.dispatch import DispatchPlan, SoftDispatchPlan, make_plan
from swin_moe.moe_config import MoEConfig


@dataclass(frozen=True, kw_only=True)
class RoutingRequest:
    """What a router decides by in one forward pass."""

    groups: int  # G
    length: int  # L; T is a multiple of it
    top_k: int  # k
    factor: float  # the capacity factor behind `slots`
    slots: int  # of one expert in one routing group


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which experts each token goes to, and with what weight: fp32, or fp64 for fp64 tokens."""

    num_experts: int  # E
    gates: Tensor  # (T, k) weight of each choice, differentiable
    expert_index: Tensor  # (T, k) int64, best first; E where a token has fewer choices
    priority: Tensor  # (G, k, S) the assignments (token * k + choice) of each group, highest priority first
    losses: dict[str, Tensor]  # unweighted "balance" and "z", those that are configured
    entropy: Tensor  # scalar, detached: of a token's scores, in nats, mean over the tokens
    every_choice: bool = True  # whether every token has all of its k choices, of distinct experts

    def plan(self, *, groups: int, slots: int, padded: bool) -> DispatchPlan:
        """The row of each assignment.

        Args:
            groups: G.
            slots: of one expert in one group.
            padded: whether every expert gets exactly G * slots rows.
        """
        assert groups == len(self.priority)
        return make_plan(
            self.gates,
            self.expert_index,
            self.priority,
            slots=slots,
            num_experts=self.num_experts,
            padded=padded,
            every_choice=self.every_choice,
        )


@dataclass(frozen=True, kw_only=True)
class SoftRouting:
    """How much of each token goes into each slot of its image, and back: p slots an expert."""

    num_experts: int  # E
    mix_in: Tensor  # (B, L, E * p) weight of each token in each slot, differentiable
    mix_out: Tensor  # (B, L, E * p) weight of each slot in each token, differentiable
    losses: dict[str, Tensor]  # unweighted "z", if configured
    entropy: Tensor  # scalar, detached: of a token's weights over the experts, in nats, mean over the tokens

    def plan(self, *, groups: int, slots: int, padded: bool) -> SoftDispatchPlan:
        """The mixture. It has neither groups nor a capacity, and every expert gets as many rows."""
        images, _, all_slots = self.mix_in.shape
        rows = images * all_slots // self.num_experts
        counts = torch.full((self.num_experts,), rows, device=self.mix_in.device)
        return SoftDispatchPlan(
            mix_in=self.mix_in,
            mix_out=self.mix_out,
            counts=counts,
            load=counts,
            dropped=counts.new_zeros(()),
            static_count=rows,
            rows_bound=rows * self.num_experts,
        )


class Router(nn.Module):
    """The interface of all routers.

    Routing is fp32 whatever the autocast and the precision of the model; fp64 tokens stay fp64. Logits that
    are NaN raise nothing, because a check would wait for the device: the gates become NaN, and the plan stays
    valid.

    Args:
        config: of the layer.
        site: number of the place that draws random numbers.
    """

    auto_balance: ClassVar[str] = "none"  # the balance loss that model.moe.balance_loss=auto stands for

    def __init__(self, config: MoEConfig, site: int) -> None:
        super().__init__()
        self.config, self.site = config, site

    def forward(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> Routing | SoftRouting:
        """Route tokens (T, C) with keys (T,)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.route(to_fp32(tokens), keys, request)

    def route(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> Routing | SoftRouting:
        """Route tokens (T, C) in fp32 or fp64, without autocast, with keys (T,)."""
        raise NotImplementedError


def to_fp32(x: Tensor) -> Tensor:
    """Convert to fp32, unless x is fp64."""
    return x if x.dtype == torch.float64 else x.float()


def topk(scores: Tensor, top_k: int) -> Tensor:
    """The k best experts of each token: (T, E) -> (T, k). Ties go to the lower expert, NaN comes first.

    torch.topk leaves the order of ties undefined.
    """
    if top_k == 1:  # a sort costs several times as much
        return scores.detach().argmax(dim=-1, keepdim=True)
    return scores.detach().argsort(dim=-1, descending=True, stable=True)[:, :top_k]


def normalized(gates: Tensor) -> Tensor:
    """Gates divided by their sum: (T, k) -> (T, k)."""
    return gates / gates.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).eps)


def mean_entropy(scores: Tensor) -> Tensor:
    """Entropy of rows that sum to 1, in nats, mean over the rows: (T, E) -> scalar, detached."""
    return torch.special.entr(scores.detach()).sum() / max(1, scores.shape[0])


def priority_order(groups: int, top_k: int, tokens: int, scores: Tensor, *, prioritized: bool) -> Tensor:
    """The assignments of every group, highest priority first: first choices before second ones.

    That is GShard's order (Lepikhin et al. 2020, algorithm 1). Among equal choices the token with the highest
    score comes first if `prioritized` (batch-prioritised routing, Riquelme et al. 2021, section 3.3), else
    the earlier one. Ties go to the earlier token: the same order run to run.

    Args:
        groups: G.
        top_k: k.
        tokens: T.
        scores: (T,).
        prioritized: by score instead of position.

    Returns:
        (G, k, S) int64.
    """
    size = tokens // max(1, groups)
    if prioritized:
        token = scores.detach().view(groups, size).argsort(dim=1, descending=True, stable=True)
    else:
        token = torch.arange(size, device=scores.device).expand(groups, size)
    if groups > 1:
        token = token + torch.arange(groups, device=token.device)[:, None] * size  # (G, S)
    if top_k == 1:
        return token[:, None, :]
    return token[:, None, :] * top_k + torch.arange(top_k, device=token.device)[:, None]
