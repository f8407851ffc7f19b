"""MoE layers without values: rows spread evenly over the experts, and rows that travel nowhere.

A router decides by value, and meta and fake tensors have none; so do the counts that ranks tell each other.
Here every expert gets as many rows. The layer, its router, the gathers of its plan and its experts are the
real ones, so they keep and free what they do in training.

Legend: T tokens, k choices, E experts, N rows of this rank, M rows received, C channels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from launcher.plan.base.capacity import Slots, Way, degree_of, slots_of, way_of
from parallel.experts.exchange import Compute
from parallel.experts.gather import expert_numel
from parallel.experts.placement import ExchangeOptions, sliced_of
from swin_moe.moe.dispatch import DispatchPlan
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.routers.base import (
    Routing,
    RoutingRequest,
    SoftRouting,
    mean_entropy,
    priority_order,
    to_fp32,
    topk,
)
from swin_moe.moe.routers.other import ExpertChoiceRouter


def spread_evenly(model: nn.Module) -> None:
    """Make a model run on tensors without values."""
    for module in list(model.modules()):
        if isinstance(module, MoELayer):
            module.exchange = _Exchange(module)  # type: ignore[assignment]
            module.router = _EvenRouter(module)  # type: ignore[assignment]


class _EvenRouting(Routing):
    """A routing whose plan is even."""

    slots: Slots

    def plan(self, *, groups: int, slots: int, padded: bool) -> DispatchPlan:
        """As many rows for every expert."""
        index, rows = self.expert_index, self.slots.rows
        counts, load = (index.new_empty(self.num_experts) for _ in range(2))
        complete = not padded and rows == index.numel()
        return DispatchPlan(
            gates=self.gates,
            order=index.new_empty(rows + (not complete))[:rows],  # one more takes what is dropped
            row=torch.empty_like(index),
            counts=load if complete else counts,
            load=load,
            dropped=index.new_empty(()),
            static_count=rows // self.num_experts if padded else None,
            rows_bound=rows,
            complete=complete,
        )


class _EvenRouter(nn.Module):
    """The layer's router, outside of autocast, which knows no meta device."""

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.inner, self.moe, self.padded = layer.router, layer.config, layer.placement.options.padded

    def forward(self, tokens: Tensor, keys: Tensor, call: RoutingRequest) -> Routing | SoftRouting:
        """Route tokens (T, C) with keys (T,)."""
        if isinstance(self.inner, ExpertChoiceRouter):
            routing: Routing | SoftRouting = _expert_choice(self.inner, to_fp32(tokens), call)
        else:
            routing = self.inner.route(to_fp32(tokens), keys, call)
        if isinstance(routing, SoftRouting):
            return routing
        even = _EvenRouting(**{name: getattr(routing, name) for name in Routing.__dataclass_fields__})
        images = len(tokens) // call.length
        slots = slots_of(self.moe, images=images, length=call.length, padded=self.padded, top_k=call.top_k)
        object.__setattr__(even, "slots", slots)
        return even


def _expert_choice(router: ExpertChoiceRouter, tokens: Tensor, call: RoutingRequest) -> Routing:
    """The router's answer, where the most experts that choose one token are taken for twice their mean."""
    moe, size = router.config, max(1, len(tokens) // max(1, call.groups))
    scores = torch.nn.functional.linear(tokens, router.weight.to(tokens.dtype)).softmax(dim=-1)
    top_k = min(moe.num_experts, 2 * math.ceil(moe.num_experts * min(call.slots, size) / size))
    index = topk(scores, top_k)
    return Routing(
        num_experts=moe.num_experts,
        gates=scores.gather(1, index) * torch.ones_like(index, dtype=torch.bool),
        expert_index=index,
        priority=priority_order(call.groups, top_k, len(tokens), scores[:, 0], prioritized=False),
        losses={},
        entropy=mean_entropy(scores),
    )


class _Counted(NamedTuple):
    """Takes the place of RowCounts."""

    way: Way
    rows: int


class _Exchange:
    """Takes the place of ExpertExchange: the copies that its hops make, and nothing sent."""

    def __init__(self, layer: MoELayer) -> None:
        self.placement, self.options = layer.placement, layer.placement.options

    def count(
        self,
        weights: Sequence[nn.Parameter],
        counts: Tensor,
        *,
        like: Tensor,
        keyed: bool = False,
        rows_bound: int = 0,
        static_count: int | None = None,
        options: ExchangeOptions | None = None,
    ) -> "_Counted":
        """The way of the rows; the plan has as many as will be."""
        return _Counted(self._way(weights, like, keyed, rows_bound), rows_bound)

    def run(
        self,
        compute: Compute,
        weights: Sequence[nn.Parameter],
        rows: Tensor,
        counted: "_Counted",
        *,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(N, C) through experts that compute M rows, and back: (N, C)."""
        way = counted.way
        here: Sequence[Tensor] = weights
        if way.degree > 1:
            here = _Bring.apply(way, *weights)
        received = way.received(len(rows), self.placement.num_experts)
        pieces = self.options.overlap if way.sources > 1 else 1
        home = []
        for piece in range(pieces):
            own = rows if pieces == 1 else _share(rows, piece, pieces)
            theirs = keys if pieces == 1 or keys is None else _share(keys, piece, pieces)
            home.append(self._journey(compute, here, own, theirs, way, received // pieces))
        count = rows.new_empty((), dtype=torch.int64)
        return home[0] if pieces == 1 else torch.cat(home), count

    def _way(self, weights: Sequence[nn.Parameter], like: Tensor, keyed: bool, rows_bound: int) -> Way:
        width = 2 if self.options.communication_dtype == "bf16" else like.element_size()
        degree = degree_of(
            self.placement,
            expert_bytes=sum(expert_numel(weight) * weight.element_size() for weight in weights),
            row_bytes=2 * like.shape[1] * width + (8 if keyed else 0),
            rows=rows_bound,
        )
        return way_of(self.placement, degree)

    def _journey(
        self,
        compute: Compute,
        weights: Sequence[Tensor],
        rows: Tensor,
        keys: Tensor | None,
        way: Way,
        received: int,
    ) -> Tensor:
        """One piece: out, through the experts and back."""
        if way.sources == 1:
            return compute(weights, rows, _even(len(rows), way.local), keys, way.part)
        arrived = self._travel(_repeated(rows, way.copies), received)
        there = None if keys is None else self._travel(_repeated(keys, way.copies), received)
        if way.local > 1:  # from by source to by expert
            arrived, there = arrived.clone(), None if there is None else there.clone()
        out = compute(weights, arrived, _even(received, way.local), there, way.part)
        del arrived, there
        out = out.clone() if way.local > 1 else out
        home = self._travel(out, len(rows) * way.copies)
        return home if way.copies == 1 else home.view(way.copies, *rows.shape).sum(0)

    def _travel(self, rows: Tensor, count: int) -> Tensor:
        """(n, ...) -> (count, ...), on the wire in its precision."""
        wire = self.options.communication_dtype == "bf16" and rows.dtype == torch.float32
        arrived = _Travel.apply(rows.bfloat16() if wire else rows, count)
        return arrived.float() if wire else arrived


class _Travel(torch.autograd.Function):
    """An all-to-all: what leaves is alive until what arrives is there, and nothing is kept."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        ctx.sent = len(rows)
        return rows.new_empty(count, *rows.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_empty(ctx.sent, *grad.shape[1:]), None


class _Bring(torch.autograd.Function):
    """The weights of neighbouring ranks as those of one, and gradients carried back."""

    @staticmethod
    def forward(ctx: Any, way: Way, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.degree = [weight.shape for weight in weights], way.degree
        shapes = [_brought(weight, way) for weight in weights]
        leaving = torch.cat([weight.reshape(-1) for weight in weights]).repeat(way.degree)
        arrived = leaving.new_empty(sum(math.prod(shape) for shape in shapes))
        del leaving
        return tuple(arrived.new_empty(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        leaving = torch.cat([grad.reshape(-1) for grad in grads])
        sizes = [shape.numel() for shape in ctx.shapes]
        arrived = leaving.new_empty(ctx.degree, sum(sizes))
        del leaving
        own = arrived.sum(0).split(sizes)
        return None, *(piece.view(shape).clone() for piece, shape in zip(own, ctx.shapes, strict=True))


def _brought(weight: Tensor, way: Way) -> list[int]:
    """The shape of a weight of all ranks that bring theirs together."""
    shape, sliced = list(weight.shape), sliced_of(weight)
    shape[0] = way.local
    if sliced is not None:
        shape[sliced.dim] = len(way.part.range(sliced.size))
    return shape


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows if copies == 1 else rows.repeat(copies, *[1] * (rows.dim() - 1))


def _share(rows: Tensor, piece: int, pieces: int) -> Tensor:
    """A copy of one piece of the rows."""
    return rows[len(rows) * piece // pieces : len(rows) * (piece + 1) // pieces].clone()


def _even(rows: int, experts: int) -> list[int]:
    return [rows * (e + 1) // experts - rows * e // experts for e in range(experts)]
