"""Capacity, priority, the plan of who goes where, and the gathers that follow it. Local and pure.

Legend: T tokens, k choices a token, E experts, G routing groups, S = T / G tokens a group, N rows kept
(N <= T * k), C channels. An assignment is one choice of one token: number token * k + choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swin_moe.router import Routing


def capacity(factor: float, tokens: int, num_experts: int, top_k: int) -> int:
    """Slots of one expert in one routing group: top_k * int(factor * ceil(tokens / num_experts)).

    This is the rounding of the released Swin-MoE models; factor 0 means dropless, a slot for every token.
    """
    if factor == 0:
        return tokens
    return top_k * int(factor * math.ceil(tokens / num_experts))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where each kept assignment goes: rows are sorted by expert, then by routing group and order."""

    order: Tensor  # (N,) the assignment in each row
    row: Tensor  # (T, k) the row of each assignment, N where it was dropped
    counts: Tensor  # (E,) rows for each expert
    load: Tensor  # (E,) assignments that wanted each expert, dropped ones included


def make_plan(routing: Routing, *, groups: int, slots: int, prioritized: bool) -> Plan:
    """Give every assignment a slot of its expert, or none.

    First choices come before second ones (GShard, Lepikhin et al. 2020, algorithm 1); among equal choices the
    token with the highest score comes first if `prioritized` (batch-prioritised routing, Riquelme et al.
    2021, section 3.3), else the earlier one. Ties go to the earlier token: the same plan run to run.

    Args:
        routing: of T tokens, the groups one after another.
        groups: G; each decides on its own who fits.
        slots: of one expert in one group.
        prioritized: batch-prioritised order instead of position.
    """
    tokens, top_k = routing.expert_index.shape
    num_experts = routing.scores.shape[1]
    assignment = _queue(routing, groups, prioritized)  # (G, k, S)
    expert = routing.expert_index.reshape(-1)[assignment]
    segment = expert * groups + torch.arange(groups, device=expert.device)[:, None, None]
    segment, position = segment.reshape(-1).sort(stable=True)
    assignment = assignment.reshape(-1)[position]

    wanted = torch.bincount(segment, minlength=num_experts * groups)  # (E * G,)
    start = wanted.cumsum(0) - wanted
    place = torch.arange(tokens * top_k, device=segment.device) - start[segment]
    order = assignment[place < slots]

    row = torch.full((tokens * top_k,), len(order), dtype=torch.int64, device=order.device)
    row[order] = torch.arange(len(order), device=order.device)
    return Plan(
        order=order,
        row=row.view(tokens, top_k),
        counts=wanted.clamp(max=slots).view(num_experts, groups).sum(1),
        load=wanted.view(num_experts, groups).sum(1),
    )


def _queue(routing: Routing, groups: int, prioritized: bool) -> Tensor:
    """Assignments in the order in which they are served: (G, k, S), k-major inside each group."""
    tokens, top_k = routing.expert_index.shape
    size = tokens // groups
    if prioritized:
        best = routing.scores.detach().gather(1, routing.expert_index[:, :1]).view(groups, size)
        token = best.argsort(dim=1, descending=True, stable=True)
    else:
        token = torch.arange(size, device=routing.gates.device).expand(groups, size)
    token = token + torch.arange(groups, device=token.device)[:, None] * size  # (G, S)
    return token[:, None, :] * top_k + torch.arange(top_k, device=token.device)[:, None]


def dispatch(tokens: Tensor, plan: Plan) -> Tensor:
    """Copy tokens into their rows: (T, C) -> (N, C), differentiable, gathers only."""
    return _Dispatch.apply(tokens, plan.order, plan.row)


def combine(rows: Tensor, gates: Tensor, plan: Plan) -> Tensor:
    """Sum each token's rows by its gates: (N, C), (T, k) -> (T, C); a dropped assignment adds nothing."""
    return _Combine.apply(rows, gates.to(rows.dtype), plan.order, plan.row)


def _gather_or_zero(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index], zero where index is len(rows): (N, C), (T,) -> (T, C)."""
    if len(rows) == 0:
        return rows.new_zeros(len(index), rows.shape[1])
    gathered = rows.index_select(0, index.clamp(max=len(rows) - 1))
    return gathered.masked_fill_((index == len(rows))[:, None], 0.0)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        return tokens.index_select(0, order // row.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (row,) = ctx.saved_tensors
        total = _gather_or_zero(grad, row[:, 0])
        for choice in range(1, row.shape[1]):
            total += _gather_or_zero(grad, row[:, choice])
        return total, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(rows, gates, order, row)
        total = _gather_or_zero(rows, row[:, 0]) * gates[:, :1]
        for choice in range(1, row.shape[1]):
            total += _gather_or_zero(rows, row[:, choice]) * gates[:, choice : choice + 1]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, gates, order, row = ctx.saved_tensors
        grad_rows = grad.index_select(0, order // row.shape[1]) * gates.reshape(-1)[order, None]
        per_choice = [(_gather_or_zero(rows, choice) * grad).sum(-1) for choice in row.unbind(1)]
        return grad_rows, torch.stack(per_choice, dim=1), None, None
