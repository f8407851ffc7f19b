"""MoE layers of a deployed model: without drops, so that an image's answer does not depend on its batch.

Legend: B images, L tokens an image, T = B * L tokens, k choices a token, E experts, M rows of an expert,
C channels, H hidden channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.errors import ModelError
from swin_moe.frozen.gathered import run_gathered, sums_like
from swin_moe.frozen.products import ExpertProducts
from swin_moe.moe.capacity import capacity
from swin_moe.moe.experts import ExpertMLP
from swin_moe.moe.grouped_gemm import ACTIVATIONS
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.routers.base import Router, Routing, RoutingRequest, SoftRouting, to_fp32
from swin_moe.moe.routers.other import ExpertChoiceRouter, HashRouter, RandomRouter
from swin_moe.moe_config import MoEConfig


class Choice(NamedTuple):
    """The experts of each token."""

    weights: Tensor  # (T, E) of the answers of all experts, 0 of those that were not chosen
    experts: Tensor  # (T, k) int64, best first; E where a token has fewer experts


class FrozenMoE(nn.Module):
    """What a `MoELayer` in evaluation computes with a slot for every choice.

    Args:
        layer: to copy, with all its experts here.
        products: how experts are run.
        length: L.

    Raises:
        ModelError: the router draws at random, so that no answer is the right one.
    """

    def __init__(self, layer: MoELayer, products: ExpertProducts, length: int) -> None:
        super().__init__()
        self.products, self.shared = products, layer.shared
        self.router = _choosing(layer, length)
        self.experts = FrozenExperts(layer.experts)

    def forward(self, x: Tensor, keys: Tensor, call: object = None) -> tuple[Tensor, Tensor]:
        """(B, L, C) -> (B, L, C), and the experts of each token, best first: (B, L, k) int64."""
        routing = self.router(x)
        if isinstance(routing, SoftRouting):
            plan = routing.plan(groups=1, slots=0, padded=False)
            rows = plan.dispatch(x.flatten(0, 1))
            y = plan.combine(self.experts(rows.unflatten(0, (routing.num_experts, -1))).flatten(0, 1))
            share = routing.mix_out.unflatten(2, (routing.num_experts, -1)).sum(3)  # (B, L, E)
            index = share.argsort(dim=-1, descending=True)
        else:
            run = {"dense": self._dense, "gathered": self._gathered, "grouped": self._grouped}[self.products]
            y, index = run(x.flatten(0, 1), routing), routing.experts.unflatten(0, x.shape[:2])
        y = y.view_as(x)
        return (y if self.shared is None else y + self.shared(x, keys)[0]), index

    def _dense(self, tokens: Tensor, choice: Choice) -> Tensor:
        rows = tokens.expand(self.experts.number, *tokens.shape)
        weights = choice.weights.to(tokens.dtype).t()[:, :, None]  # (E, T, 1)
        return (self.experts(rows) * weights).sum(0)

    def _gathered(self, tokens: Tensor, choice: Choice) -> Tensor:
        return self.experts.gathered(tokens, choice.weights.to(tokens.dtype), choice.experts)

    def _grouped(self, tokens: Tensor, choice: Choice) -> Tensor:
        k = choice.experts.shape[1]
        expert, order = choice.experts.flatten().sort(stable=True)  # (T * k,)
        ends = torch.searchsorted(expert, torch.arange(self.experts.number, device=expert.device), right=True)
        rows = self.experts.grouped(tokens.index_select(0, order // k), expert, ends.to(torch.int32))
        weights = choice.weights.to(tokens.dtype).gather(1, choice.experts).flatten().index_select(0, order)
        y = sums_like(tokens)
        return y.index_add(0, order // k, (rows * weights[:, None]).to(y.dtype)).to(tokens.dtype)


class FrozenExperts(nn.Module):
    """The weights of all experts, and the ways to run them."""

    def __init__(self, experts: ExpertMLP) -> None:
        super().__init__()
        gate = [] if experts.gate_weight is None else [(experts.gate_weight, experts.gate_bias)]
        first = [(experts.fc1_weight, experts.fc1_bias), *gate]
        self.number = len(experts.fc1_weight)
        self.activation = experts.activation
        self.activate = ACTIVATIONS[experts.activation].value
        self.first = nn.ParameterList(weight for weight, _ in first)  # (E, C, H) each
        self.first_bias = nn.ParameterList(bias for _, bias in first)  # (E, H) each
        self.fc2, self.fc2_bias = experts.fc2_weight, experts.fc2_bias  # (E, H, C), (E, C)

    def forward(self, rows: Tensor) -> Tensor:
        """Run each expert on equally many rows: (E, M, C) -> (E, M, C)."""
        hidden = [
            torch.baddbmm(bias[:, None], rows, weight)
            for weight, bias in zip(self.first, self.first_bias, strict=True)
        ]
        y = self.activate(hidden, None) @ self.fc2
        return y if self.fc2_bias is None else y + self.fc2_bias[:, None]

    def gathered(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """Run each expert on the tokens (T, C) that chose it: see `gathered_experts`."""
        first, bias = list(self.first), list(self.first_bias)
        return run_gathered(tokens, weights, index, first, bias, self.fc2, self.fc2_bias, self.activation)

    def grouped(self, rows: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """Run each expert on its rows.

        Args:
            rows: (M, C) of all experts, sorted by expert.
            expert: (M,) of the rows.
            ends: (E,) int32 where the rows of each expert end.
        """
        pairs = zip(self.first, self.first_bias, strict=True)
        hidden = [F.grouped_mm(rows, w, offs=ends) + b.index_select(0, expert) for w, b in pairs]
        y = F.grouped_mm(self.activate(hidden, None), self.fc2, offs=ends)
        return y if self.fc2_bias is None else y + self.fc2_bias.index_select(0, expert)


def _choosing(layer: MoELayer, length: int) -> nn.Module:
    """What chooses the experts of tokens (B, L, C): a module that gives a `Choice` or a `SoftRouting`."""
    router, top_k = layer.router, layer.config.top_k
    if isinstance(router, RandomRouter):
        raise ModelError(
            "model.moe.router (random) draws experts by the number of a sample, which a deployed model does "
            "not know; choose a model with another router"
        )
    if isinstance(router, ExpertChoiceRouter):
        return _ByImage(router, layer.config, length)
    return _OnePosition(router, top_k, length) if isinstance(router, HashRouter) else _ByRouter(router, top_k)


class _ByRouter(nn.Module):
    """A router that chooses by the token, or by the tokens of an image, as it is."""

    def __init__(self, router: Router, top_k: int) -> None:
        super().__init__()
        self.router, self.top_k = router, top_k

    def forward(self, x: Tensor) -> Choice | SoftRouting:
        request = RoutingRequest(groups=1, length=x.shape[1], top_k=self.top_k, factor=0.0, slots=0)
        keys = torch.zeros(x.shape[:1], dtype=torch.int64, device=x.device)[:, None].expand(x.shape[:2])
        routing = self.router(x.flatten(0, 1), keys.flatten(), request)
        return _choice(routing) if isinstance(routing, Routing) else routing


class _OnePosition(nn.Module):
    """A router that chooses by the token's position: its choices are constants."""

    index: Tensor  # (L, k) int64
    weights: Tensor  # (L, E)

    def __init__(self, router: HashRouter, top_k: int, length: int) -> None:
        super().__init__()
        request = RoutingRequest(groups=1, length=length, top_k=top_k, factor=0.0, slots=length)
        routing = router(torch.zeros(length, 1), torch.zeros(length, dtype=torch.int64), request)
        assert isinstance(routing, Routing)
        choice = _choice(routing)
        self.register_buffer("index", choice.experts)
        self.register_buffer("weights", choice.weights)

    def forward(self, x: Tensor) -> Choice:
        weights, index = (t.expand(x.shape[0], *t.shape).flatten(0, 1) for t in (self.weights, self.index))
        return Choice(weights, index)


class _ByImage(nn.Module):
    """Experts that choose among the tokens of one image."""

    def __init__(self, router: ExpertChoiceRouter, config: MoEConfig, length: int) -> None:
        super().__init__()
        if config.routing_group_images != 1:
            raise ModelError(
                f"model.moe.routing_group_images ({config.routing_group_images}) must be 1 for a deployed "
                "model with model.moe.router=expert_choice: otherwise experts choose among the tokens of "
                "several images, and the answer to an image depends on the others"
            )
        self.router = router
        self.slots = capacity(config.eval_capacity_factor, length, config.num_experts, config.top_k)

    def forward(self, x: Tensor) -> Choice:
        tokens = to_fp32(x)
        scores = F.linear(tokens, self.router.weight.to(tokens.dtype)).softmax(dim=-1)  # (B, L, E)
        rank = scores.argsort(dim=1, descending=True, stable=True)[:, : self.slots]
        ones = torch.ones_like(rank, dtype=scores.dtype)  # as many as indices, which ONNX wants
        chosen = torch.zeros_like(scores).scatter(1, rank, ones)
        weights = (scores * chosen).flatten(0, 1)
        index = weights.argsort(dim=-1, descending=True, stable=True)
        return Choice(weights, index.where(weights.gather(1, index) > 0, weights.shape[1]))


def _choice(routing: Routing) -> Choice:
    """The gates of chosen experts in their columns."""
    weights = routing.gates.new_zeros(routing.gates.shape[0], routing.num_experts)
    return Choice(weights.scatter(1, routing.expert_index, routing.gates), routing.expert_index)
