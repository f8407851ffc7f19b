"""Capacity, the plan of who goes where, and the gathers that follow it. Local and pure.

Legend: T tokens, k choices a token, E experts, G routing groups, S = T / G tokens a group, N rows,
C channels. An assignment is one choice of one token: number token * k + choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.randomness import fork


def capacity(factor: float, tokens: int, num_experts: int, top_k: int) -> int:
    """Slots of one expert in one routing group: top_k * int(|factor| * ceil(tokens / num_experts)).

    This is the rounding of the released Swin-MoE models, here of a routing group and not of a rank's batch:
    no layout changes who is dropped. Factor 0 means dropless, a slot for every token. A factor below 0 is at
    most its absolute value: without the slots that no load could fill, as a token chooses an expert once. So
    -f drops the tokens that f drops.
    """
    if factor == 0:
        return tokens
    slots = top_k * int(abs(factor) * math.ceil(tokens / num_experts))
    return slots if factor > 0 else min(slots, tokens)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where each kept assignment goes: rows are sorted by expert, then by routing group and order of service.

    A padded plan has as many rows for every (expert, group), and the ones left over read zeros.
    """

    gates: Tensor  # (T, k) weight of each choice, differentiable
    order: Tensor  # (N,) the assignment in each row, T * k in a row that only pads
    row: Tensor  # (T, k) the row of each assignment, N where it was dropped
    counts: Tensor  # (E,) rows for each expert, padding included
    load: Tensor  # (E,) assignments that wanted each expert, dropped ones included
    dropped: Tensor  # scalar: assignments without a slot, and tokens that no expert chose
    static_count: int | None  # rows for every expert of a padded plan, known without the device
    rows_bound: int  # N or more, the same for every plan of as many tokens

    def dispatch(self, tokens: Tensor) -> Tensor:
        """Copy tokens into their rows: (T, C) -> (N, C), differentiable, gathers only."""
        return _Dispatch.apply(tokens, self.order, self.row, self.static_count is not None)

    def combine(self, rows: Tensor) -> Tensor:
        """Sum each token's rows by its gates: (N, C) -> (T, C); a dropped assignment adds nothing."""
        gates = self.gates.to(rows.dtype)
        return _Combine.apply(rows, gates, self.order, self.row, self.static_count is not None)

    def keys(self, token_keys: Tensor) -> Tensor:
        """Keys of the rows, of the token and the number of the choice: (T,) -> (N,)."""
        top_k = self.row.shape[1]
        token = (self.order // top_k).clamp(max=len(token_keys) - 1)
        return fork(token_keys.index_select(0, token), self.order % top_k)


def make_plan(
    gates: Tensor, expert_index: Tensor, queue: Tensor, *, slots: int, num_experts: int, padded: bool
) -> Plan:
    """Give every assignment a slot of its expert, or none.

    Args:
        gates: (T, k).
        expert_index: (T, k); num_experts where there is no choice.
        queue: (G, k, S) the assignments of each group in the order in which they are served.
        slots: of one expert in one group; each group decides on its own who fits.
        num_experts: E.
        padded: whether every expert gets exactly G * slots rows. Nothing then waits for the device.
    """
    groups, segments = len(queue), num_experts * len(queue)
    segment = expert_index.reshape(-1)[queue] * groups + _range(groups, queue)[:, None, None]
    segment, position = segment.reshape(-1).sort(stable=True)
    assignment = queue.reshape(-1)[position]
    edges = torch.searchsorted(segment, _range(segments + 1, queue))  # bincount would wait for the device
    start, wanted = edges[:-1], edges.diff()  # (E * G,)
    kept = wanted.clamp(max=slots)

    place = _range(len(segment), queue) - edges[segment.clamp(max=segments)]  # within the expert's queue
    fits = (place < slots) & (segment < segments)
    if padded:
        first, order = _range(segments, queue) * slots, _padded_order(assignment, start, kept, slots)
    else:
        first, order = kept.cumsum(0) - kept, assignment[fits]
    target = first[segment.clamp(max=segments - 1)] + place
    row = torch.empty_like(assignment)
    row[assignment] = target.where(fits, len(order))

    per_expert = torch.stack([wanted, kept]).view(2, num_experts, groups).sum(2)
    unchosen = (expert_index[:, 0] == num_experts).sum()
    return Plan(
        gates=gates,
        order=order,
        row=row.view_as(expert_index),
        counts=torch.full_like(per_expert[1], groups * slots) if padded else per_expert[1],
        load=per_expert[0],
        dropped=(per_expert[0] - per_expert[1]).sum() + unchosen,
        static_count=groups * slots if padded else None,
        rows_bound=segments * slots if padded else min(queue.numel(), segments * min(slots, queue.shape[2])),
    )


def _range(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


def _padded_order(assignment: Tensor, start: Tensor, kept: Tensor, slots: int) -> Tensor:
    """Rows of `slots` a segment: (T * k,) sorted assignments, (E * G,), (E * G,) -> (E * G * slots,)."""
    place = _range(slots, assignment)
    source = (start[:, None] + place).clamp(max=max(0, len(assignment) - 1))  # (E * G, slots)
    return assignment[source].where(place < kept[:, None], len(assignment)).view(-1)


@dataclass(frozen=True, kw_only=True)
class SoftPlan:
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
        keys = fork(token_keys[::length, None], _range(slots, token_keys))  # (B, E * p)
        return self._swap(keys.unflatten(1, (len(self.counts), -1)))

    @staticmethod
    def _swap(x: Tensor) -> Tensor:
        """Between sorted by image and sorted by expert: (a, b, p, ...) -> (b * a * p, ...)."""
        return x.transpose(0, 1).flatten(0, 2)


def _gather(rows: Tensor, index: Tensor, *, masked: bool) -> Tensor:
    """rows[index], zero where index is len(rows) if there is such an index: (N, C), (T,) -> (T, C)."""
    if not masked:
        return rows.index_select(0, index)
    if len(rows) == 0:
        return rows.new_zeros(len(index), rows.shape[1])
    gathered = rows.index_select(0, index.clamp(max=len(rows) - 1))
    return gathered.masked_fill_((index == len(rows))[:, None], 0.0)


def _weighted_sum(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """sum_k weights[:, k] * rows[index[:, k]] in one pass: (N, C), (T, k), (T, k) -> (T, C).

    Where index is len(rows) nothing is added, unless the weight is not a number.
    """
    weights = weights * (index < len(rows))
    if len(rows) == 0:
        return weights.sum(1, keepdim=True).repeat(1, rows.shape[1])
    index = index.clamp(max=len(rows) - 1)
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, row: Tensor, padded: bool) -> Tensor:
        ctx.save_for_backward(row)
        return _gather(tokens, order // row.shape[1], masked=padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (row,) = ctx.saved_tensors
        return _weighted_sum(grad, row, grad.new_ones(row.shape)), None, None, None


class _Combine(torch.autograd.Function):
    """Saves the rows only for the gradient of the gates."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, row: Tensor, padded: bool) -> Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, gates, order, row)
        ctx.padded = padded
        return _weighted_sum(rows, row, gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        rows, gates, order, row = ctx.saved_tensors
        spread = _gather(grad, order // row.shape[1], masked=ctx.padded)  # (N, C)
        grad_gates = None
        if rows is not None:
            product = torch.linalg.vecdot(rows, spread)[:, None]  # (N, 1) <row, gradient of its token>
            grad_gates = _gather(product, row.view(-1), masked=True).view_as(row)
        return spread.mul_(_gather(gates.view(-1, 1), order, masked=ctx.padded)), grad_gates, None, None, None
