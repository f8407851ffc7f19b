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

from launcher.plan.base.capacity import GatheredPlacement, Slots, gathered_placement, slots_of
from parallel.experts.exchange import Compute, degree_of
from parallel.experts.gather_degree import wire_bytes
from parallel.experts.placement import sliced_of
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


def balance_experts(model: nn.Module) -> None:
    """Make a model run on tensors without values."""
    for module in list(model.modules()):
        if isinstance(module, MoELayer):
            module.exchange = _BalancedExchange(module)  # type: ignore[assignment]
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


class _BalancedCounts(NamedTuple):
    """Takes the place of RowCounts."""

    at: GatheredPlacement
    rows: int


class _BalancedExchange:
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
        **_: Any,
    ) -> _BalancedCounts:
        """Where the rows of a call are computed; the plan has as many rows as will be."""
        degree = degree_of(
            self.placement, self.options, weights, like=like, keyed=keyed, rows_bound=rows_bound
        )
        return _BalancedCounts(gathered_placement(self.placement, degree), rows_bound)

    def run(
        self,
        compute: Compute,
        weights: Sequence[nn.Parameter],
        rows: Tensor,
        row_counts: _BalancedCounts,
        *,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(N, C) through experts that compute M rows, and back: (N, C)."""
        at = row_counts.at
        gathered: Sequence[Tensor] = _Gather.apply(at, *weights) if at.degree > 1 else weights
        received = at.received(len(rows), self.placement.num_experts)
        chunks = self.options.overlap if at.sources > 1 else 1
        returned = []
        for chunk in range(chunks):
            own = rows if chunks == 1 else _chunk(rows, chunk, chunks)
            own_keys = keys if chunks == 1 or keys is None else _chunk(keys, chunk, chunks)
            returned.append(self._run_chunk(compute, gathered, own, own_keys, at, received // chunks))
        count = rows.new_empty((), dtype=torch.int64)
        return returned[0] if chunks == 1 else torch.cat(returned), count

    def _run_chunk(
        self,
        compute: Compute,
        weights: Sequence[Tensor],
        rows: Tensor,
        keys: Tensor | None,
        at: GatheredPlacement,
        received: int,
    ) -> Tensor:
        """One chunk: out, through the experts and back."""
        if at.sources == 1:
            return compute(weights, rows, _even(len(rows), at.local), keys, at.part)
        arrived = self._send(_repeated(rows, at.copies), received)
        arrived_keys = None if keys is None else self._send(_repeated(keys, at.copies), received)
        if at.local > 1:  # from by source to by expert
            arrived = arrived.clone()
            arrived_keys = None if arrived_keys is None else arrived_keys.clone()
        out = compute(weights, arrived, _even(received, at.local), arrived_keys, at.part)
        del arrived, arrived_keys
        out = out.clone() if at.local > 1 else out
        returned = self._send(out, len(rows) * at.copies)
        return returned if at.copies == 1 else returned.view(at.copies, *rows.shape).sum(0)

    def _send(self, rows: Tensor, count: int) -> Tensor:
        """(n, ...) -> (count, ...), sent in the precision of the exchange."""
        narrow = wire_bytes(self.options, rows.element_size()) < rows.element_size()
        arrived = _AllToAll.apply(rows.bfloat16() if narrow else rows, count)
        return arrived.float() if narrow else arrived


class _AllToAll(torch.autograd.Function):
    """What leaves is alive until what arrives is there, and nothing is kept."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        ctx.sent = len(rows)
        return rows.new_empty(count, *rows.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_empty(ctx.sent, *grad.shape[1:]), None


class _Gather(torch.autograd.Function):
    """The weights of neighbouring ranks as those of one, and gradients returned to them."""

    @staticmethod
    def forward(ctx: Any, at: GatheredPlacement, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.degree = [weight.shape for weight in weights], at.degree
        shapes = [_gathered_shape(weight, at) for weight in weights]
        leaving = torch.cat([weight.reshape(-1) for weight in weights]).repeat(at.degree)
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
        return None, *(grad.view(shape).clone() for grad, shape in zip(own, ctx.shapes, strict=True))


def _gathered_shape(weight: Tensor, at: GatheredPlacement) -> list[int]:
    """The shape of the weights of all ranks that gather theirs."""
    shape, sliced = list(weight.shape), sliced_of(weight)
    shape[0] = at.local
    if sliced is not None:
        shape[sliced.dim] = len(at.part.range(sliced.size))
    return shape


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows if copies == 1 else rows.repeat(copies, *[1] * (rows.dim() - 1))


def _chunk(rows: Tensor, chunk: int, chunks: int) -> Tensor:
    """A copy of one chunk of the rows."""
    return rows[len(rows) * chunk // chunks : len(rows) * (chunk + 1) // chunks].clone()


def _even(rows: int, experts: int) -> list[int]:
    return [rows * (e + 1) // experts - rows * e // experts for e in range(experts)]
