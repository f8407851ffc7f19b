"""Capacity, the row of every assignment, and the gathers to rows and back. On this rank alone, without state.

Legend: T tokens, k choices a token, E experts, G routing groups, S = T / G tokens a group, N rows,
C channels. An assignment is one choice of one token: number token * k + choice.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe import gpu
from swin_moe.random.keyed import fold_in


@dataclass(frozen=True, kw_only=True)
class DispatchPlan:
    """The row of each kept assignment: rows are sorted by expert, then by routing group, then by priority.

    A padded plan has as many rows for every (expert, group); rows without an assignment read zeros. Where a
    capacity may drop assignments, the number of rows is known to the device alone: the plan then has
    `rows_bound` rows, the last of which read zeros too, until `settled` removes them.
    """

    gates: Tensor  # (T, k) weight of each choice, differentiable
    order: Tensor  # (N,) the assignment in each row, T * k in a row without one
    row: Tensor  # (T, k) the row of each assignment, `rows_bound` where it was dropped
    counts: Tensor  # (E,) rows for each expert, padding included, but not the rows that `settled` removes
    load: Tensor  # (E,) assignments that wanted each expert, dropped ones included
    dropped: Tensor  # scalar: assignments without a slot, and tokens that no expert chose
    static_count: int | None  # rows for every expert of a padded plan, known without the device
    rows_bound: int  # N or more, the same for every plan of as many tokens
    complete: bool  # every assignment has a row and every row an assignment: nothing is masked

    def settled(self, rows: int | None) -> "DispatchPlan":
        """The plan with the rows that the experts get.

        Args:
            rows: the sum of `counts`, or None where the host does not know it. On a CPU it is then read; on
                a GPU the further rows stay: the last expert computes them, and `combine` does not read them.
        """
        if self.complete or self.static_count is not None:
            return self
        if rows is None and not gpu.on_gpu(self.counts):
            rows = int(self.counts.sum())
        return replace(self, order=self.order[:rows])

    def dispatch(self, tokens: Tensor) -> Tensor:
        """Gather each row's token: (T, C) -> (N, C), differentiable, without atomic additions."""
        return _Dispatch.apply(tokens, self.order, self.row, not self.complete)

    def combine(self, rows: Tensor) -> Tensor:
        """Sum each token's rows by its gates: (N, C) -> (T, C); a dropped assignment adds nothing."""
        gates = self.gates.to(rows.dtype)
        return _Combine.apply(rows, gates, self.order, self.row, not self.complete)

    def keys(self, token_keys: Tensor) -> Tensor:
        """Keys of the rows, of the token and the number of the choice: (T,) -> (N,)."""
        top_k = self.row.shape[1]
        token = _token(self.order, top_k)
        token = token if self.complete else token.clamp(max=len(token_keys) - 1)
        return fold_in(token_keys.index_select(0, token), 0 if top_k == 1 else self.order % top_k)


def make_plan(
    gates: Tensor,
    expert_index: Tensor,
    priority: Tensor,
    *,
    slots: int,
    num_experts: int,
    padded: bool,
    every_choice: bool = False,
) -> DispatchPlan:
    """Give every assignment a slot of its expert, or drop it. Nothing waits for the device.

    Args:
        gates: (T, k).
        expert_index: (T, k); num_experts where there is no choice.
        priority: (G, k, S) the assignments of each group, highest priority first.
        slots: of one expert in one group; each group fills its own.
        num_experts: E.
        padded: whether every expert gets exactly G * slots rows.
        every_choice: whether it is known that every token has k choices, of distinct experts.
    """
    groups, segments, total = len(priority), num_experts * len(priority), priority.numel()
    complete = every_choice and not padded and slots >= priority.shape[2]
    segment = expert_index.reshape(-1)[priority]
    if groups > 1:
        segment = segment * groups + _range(groups, priority)[:, None, None]
    if gpu.on_gpu(priority) and segments + groups < 2**31:
        segment = segment.int()  # half of the passes of a radix sort, and the same order
    segment, position = segment.reshape(-1).sort(stable=True)
    assignment = priority.reshape(-1)[position]
    edges = torch.searchsorted(segment, _range(segments + 1, segment))  # bincount would wait for the device
    start, wanted = edges[:-1], edges.diff()  # (E * G,)
    load = _by_expert(wanted, num_experts)
    if complete:
        row = torch.empty_like(assignment).scatter_(0, assignment, _range(total, priority))
        return DispatchPlan(
            gates=gates,
            order=assignment,
            row=row.view_as(expert_index),
            counts=load,
            load=load,
            dropped=load.new_zeros(()),
            static_count=None,
            rows_bound=total,
            complete=True,
        )

    bound = segments * slots if padded else min(total, segments * min(slots, priority.shape[2]))
    kept = wanted.clamp(max=slots)
    first = _range(segments, priority) * slots if padded else kept.cumsum(0) - kept  # row of each segment
    own = segment if every_choice else segment.clamp(max=segments - 1)
    sorted_position = _range(total, priority)
    fits = sorted_position < (start + slots).index_select(0, own)
    if not every_choice:
        fits &= segment < segments
    target = ((first - start).index_select(0, own) + sorted_position).where(fits, bound)
    row = torch.empty_like(assignment).scatter_(0, assignment, target)
    order = priority.new_full((bound + 1,), total).scatter_(0, target, assignment)[:bound]
    counts = _by_expert(kept, num_experts)
    dropped = (load - counts).sum()
    return DispatchPlan(
        gates=gates,
        order=order,
        row=row.view_as(expert_index),
        counts=torch.full_like(counts, groups * slots) if padded else counts,
        load=load,
        dropped=dropped if every_choice else dropped + (expert_index[:, 0] == num_experts).sum(),
        static_count=groups * slots if padded else None,
        rows_bound=bound,
        complete=False,
    )


def _by_expert(segments: Tensor, num_experts: int) -> Tensor:
    """Numbers of every expert and group, summed over the groups: (E * G,) -> (E,)."""
    groups = len(segments) // num_experts
    return segments if groups == 1 else segments.view(num_experts, groups).sum(1)


def _range(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=like.dtype)


@dataclass(frozen=True, kw_only=True)
class SoftDispatchPlan:
    """The plan of Soft MoE: a row is a mixture of the tokens of one image (Puigcerver et al. 2023, eq. 2).

    Legend: B images, L tokens an image, p slots an expert and image. Rows are sorted by expert, image, slot:
    N = E * B * p.
    """

    mix_in: Tensor  # (B, L, E * p) weight of each token in each slot, columns sum to 1
    mix_out: Tensor  # (B, L, E * p) weight of each slot in each token, rows sum to 1
    counts: Tensor  # (E,)
    load: Tensor  # (E,) the same
    dropped: Tensor  # scalar: 0
    static_count: int  # B * p
    rows_bound: int  # N

    def settled(self, rows: int | None) -> "SoftDispatchPlan":
        """The plan itself: its rows are known without the device."""
        return self

    def dispatch(self, tokens: Tensor) -> Tensor:
        """Mix tokens into rows: (T, C) -> (N, C)."""
        images, length, _ = self.mix_in.shape
        slots = self.mix_in.to(tokens.dtype).mT @ tokens.unflatten(0, (images, length))  # (B, E * p, C)
        return self._swap(slots.unflatten(1, (len(self.counts), -1)))

    def combine(self, rows: Tensor) -> Tensor:
        """Mix rows into tokens: (N, C) -> (T, C)."""
        images, _, slots = self.mix_out.shape
        experts = len(self.counts)
        by_image = self._swap(rows.unflatten(0, (experts, images, slots // experts)))  # (B * E * p, C)
        y = self.mix_out.to(rows.dtype) @ by_image.unflatten(0, (images, slots))  # (B, L, C)
        return y.flatten(0, 1)

    def keys(self, token_keys: Tensor) -> Tensor:
        """Keys of the rows, of the image's first token and the number of the slot: (T,) -> (N,)."""
        _, length, slots = self.mix_in.shape
        keys = fold_in(token_keys[::length, None], _range(slots, token_keys))  # (B, E * p)
        return self._swap(keys.unflatten(1, (len(self.counts), -1)))

    @staticmethod
    def _swap(x: Tensor) -> Tensor:
        """Between sorted by image and sorted by expert: (a, b, p, ...) -> (b * a * p, ...)."""
        return x.transpose(0, 1).flatten(0, 2)


def _token(order: Tensor, top_k: int) -> Tensor:
    """Assignments -> their tokens: (N,) -> (N,), T or more of a row that only pads."""
    return order if top_k == 1 else order // top_k


def _gather(rows: Tensor, index: Tensor, *, masked: bool) -> Tensor:
    """rows[index], if `masked` zero where there is no such row: (N, C), (T,) -> (T, C)."""
    if not masked:
        return rows.index_select(0, index)
    if len(rows) == 0:
        return rows.new_zeros(len(index), rows.shape[1])
    gathered = rows.index_select(0, index.clamp(max=len(rows) - 1))
    return gathered.masked_fill_((index >= len(rows))[:, None], 0.0)


def _weighted_sum(rows: Tensor, index: Tensor, weights: Tensor | None, *, masked: bool) -> Tensor:
    """sum_k weights[:, k] * rows[index[:, k]] in one pass: (N, C), (T, k), (T, k) -> (T, C).

    Weights of None are 1.

    If `masked`, nothing is added where there is no such row, unless the weight is not a number.
    """
    if weights is None:
        if index.shape[1] == 1:
            return _gather(rows, index[:, 0], masked=masked)
        weights = rows.new_ones(index.shape)
    if masked:
        weights = weights * (index < len(rows))
        if len(rows) == 0:
            return weights.sum(1, keepdim=True).repeat(1, rows.shape[1])
        index = index.clamp(max=len(rows) - 1)
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, row: Tensor, masked: bool) -> Tensor:
        ctx.save_for_backward(row)
        ctx.masked = masked
        return _gather(tokens, _token(order, row.shape[1]), masked=masked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (row,) = ctx.saved_tensors
        return _weighted_sum(grad, row, None, masked=ctx.masked), None, None, None


class _Combine(torch.autograd.Function):
    """Saves the rows only for the gradient of the gates."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, row: Tensor, masked: bool) -> Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, gates, order, row)
        ctx.masked = masked
        return _weighted_sum(rows, row, gates, masked=masked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, order, row = ctx.saved_tensors
        safe = order.clamp(max=gates.numel() - 1) if ctx.masked else order
        spread = grad.index_select(0, _token(safe, row.shape[1]))  # (N, C)
        grad_gates = None
        if rows is not None:
            product = torch.linalg.vecdot(rows, spread)[:, None]  # (N, 1) <row, gradient of its token>
            grad_gates = _gather(product, row.view(-1), masked=ctx.masked).view_as(row)
        spread.mul_(gates.view(-1, 1).index_select(0, safe))
        if ctx.masked:
            spread.masked_fill_((order >= gates.numel())[:, None], 0.0)
        return spread, grad_gates, None, None, None
