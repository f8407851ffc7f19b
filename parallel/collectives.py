"""Collectives that gradients flow through; a group of None is one process, where each is the identity."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class RanksError(ValueError):
    """Something failed on one or more ranks; it is raised on all of them, with the same message."""


class _AllToAll(torch.autograd.Function):
    """The backward of an all-to-all is the all-to-all with the splits exchanged."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _exchange(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def _exchange(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    # gloo accepts a non-contiguous output and silently fills it wrongly: the output is always made fresh
    received = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
    return received


def all_to_all(
    rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup | None
) -> Tensor:
    """Send consecutive pieces of `rows` to the ranks of `group` and receive theirs, differentiably.

    Args:
        rows: (sum(send), ...), sorted by destination rank.
        send: rows for each rank of the group.
        receive: rows from each rank of the group.

    Returns:
        (sum(receive), ...), sorted by source rank.
    """
    if group is None:
        return rows
    return _AllToAll.apply(rows, list(send), list(receive), group)


def exchange_counts(counts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Tell every rank how many rows it will get: row r of `counts` goes to rank r; (R, n) -> (R, n)."""
    if group is None:
        return counts
    received = torch.empty_like(counts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, counts.contiguous(), group=group)
    return received


def sum_over(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor in place over the ranks of `group`, or of the whole world, and return it."""
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(values, group=group)
    return values


def agree(action: Callable[[], T], errors: tuple[type[BaseException], ...]) -> list[T]:
    """Run a local action on every rank and return every rank's result; if one rank fails, all raise.

    Args:
        action: local; it may not wait for other ranks.
        errors: what counts as a failure of this rank; anything else is a bug and passes through.

    Raises:
        RanksError: with every distinct reason and the ranks it is of.
    """
    try:
        outcome: tuple[bool, Any] = (True, action())
    except errors as error:
        outcome = (False, str(error))
    outcomes = gather_objects(outcome)
    reasons: dict[str, list[int]] = {}
    for rank, (succeeded, value) in enumerate(outcomes):
        if not succeeded:
            reasons.setdefault(value, []).append(rank)
    if not reasons:
        return [value for _, value in outcomes]
    if list(reasons.values()) == [list(range(len(outcomes)))]:
        raise RanksError(next(iter(reasons)))
    raise RanksError("; ".join(f"rank {', '.join(map(str, of))}: {text}" for text, of in reasons.items()))


def gather_objects(value: Any) -> list[Any]:
    """One small object from every rank, in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
