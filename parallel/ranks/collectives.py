"""Collectives that gradients flow through; for a group of None, one process, each is the identity."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class RanksError(ValueError):
    """Something failed on one or more ranks; it is raised on all of them, with the same message."""


class AsyncAllToAll:
    """A differentiable all-to-all that runs beside computation.

    `issue` sends and returns at once; `wait` returns the rows that arrived. In the backward pass `wait`
    issues the all-to-all of the gradients in the other direction, and `issue` waits for it. Autograd runs the
    backward of the latest operation first, so that what ran between the two overlaps with the gradients too.

    Args:
        send: rows for each rank of the group.
        receive: rows from each rank of the group.
        group: of the ranks.
    """

    def __init__(self, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> None:
        self._send_splits, self._receive_splits, self._group = list(send), list(receive), group
        self._in_flight: tuple[Tensor, Tensor, dist.Work] | None = None

    def issue(self, rows: Tensor) -> Tensor:
        """Send (sum(send), ...), sorted by destination; returns a handle for `wait`, an empty tensor."""
        return _Issue.apply(rows, self)

    def wait(self, handle: Tensor) -> Tensor:
        """Wait for the rows that `issue` returned the handle of: (sum(receive), ...), sorted by source."""
        return _Wait.apply(handle, self)

    def send(self, rows: Tensor, *, reverse: bool) -> Tensor:
        """Start the all-to-all, from receivers to senders if `reverse`; returns an empty tensor."""
        send, receive = self._send_splits, self._receive_splits
        if reverse:
            send, receive = receive, send
        # gloo accepts a non-contiguous output and silently fills it wrongly: the output is always made fresh
        output, source = rows.new_empty(sum(receive), *rows.shape[1:]), rows.contiguous()
        work = dist.all_to_all_single(output, source, receive, send, group=self._group, async_op=True)
        assert work is not None  # this rank is in the group
        self._in_flight = output, source, work  # keeps both tensors alive until `receive`
        return rows.new_empty(0)

    def receive(self) -> Tensor:
        """Wait for the all-to-all that `send` started, and return its rows."""
        assert self._in_flight is not None
        (output, _, work), self._in_flight = self._in_flight, None
        work.wait()
        return output


class _Issue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: AsyncAllToAll) -> Tensor:
        ctx.exchange = exchange
        return exchange.send(rows, reverse=False)

    @staticmethod
    def backward(ctx: Any, handle: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.receive(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, exchange: AsyncAllToAll) -> Tensor:
        ctx.exchange = exchange
        return exchange.receive()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.send(grad, reverse=True), None


def all_to_all(
    rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup | None
) -> Tensor:
    """Send consecutive splits of `rows` to the ranks of `group` and receive theirs, differentiably.

    Args:
        rows: (sum(send), ...), sorted by destination rank.
        send: rows for each rank of the group.
        receive: rows from each rank of the group.

    Returns:
        (sum(receive), ...), sorted by source rank.
    """
    if group is None:
        return rows
    exchange = AsyncAllToAll(send, receive, group)
    return exchange.wait(exchange.issue(rows))


def new_group(ranks: Sequence[int] | None = None, **options: Any) -> dist.ProcessGroup:
    """Make a process group as `torch.distributed.new_group` does; every rank of the world calls it.

    Only the ranks of the group may use what it returns: the others get a number in its place.
    """
    return cast(dist.ProcessGroup, dist.new_group(list(ranks) if ranks is not None else None, **options))


def sum_over(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor in place over the ranks of `group`, or of the world, and return it."""
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(values, group=group)
    return values


def all_gather_single(output: Tensor, part: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Fill `output`, (R n,), with the `part` (n,) of each of the R ranks of `group`, or of the world."""
    # torch 2.14 gave the collective this name and warns at the one before
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(output, part, group=group)


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return sum_over(values.clone(), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad.clone(), ctx.group), None


def differentiable_sum_over(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum a tensor over the ranks of `group`, differentiably: the gradient is that of all ranks' losses."""
    return values if group is None else _SumOver.apply(values, group)


def agree(
    action: Callable[[], T],
    errors: tuple[type[BaseException], ...],
    group: dist.ProcessGroup | None = None,
) -> list[T]:
    """Run a local action on every rank and return every rank's result; if one rank fails, all raise.

    Args:
        action: runs on this rank alone and must not wait for other ranks.
        errors: exceptions that count as a failure of this rank; any other is a bug and propagates.
        group: of all ranks; None is the default group.

    Raises:
        RanksError: with every distinct reason and the ranks that gave it.
    """
    try:
        result: tuple[bool, Any] = (True, action())
    except errors as error:
        result = (False, str(error))
    results = gather_objects(result, group)
    reasons: dict[str, list[int]] = {}
    for rank, (succeeded, value) in enumerate(results):
        if not succeeded:
            reasons.setdefault(value, []).append(rank)
    if not reasons:
        return [value for _, value in results]
    if list(reasons.values()) == [list(range(len(results)))]:
        raise RanksError(next(iter(reasons)))
    raise RanksError("; ".join(f"rank {', '.join(map(str, of))}: {text}" for text, of in reasons.items()))


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return one small object of every rank of `group`, or of the world, in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def gather_to_first(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the objects of every rank of `group`, or of the world, in rank order, on its first rank.

    Returns:
        On the other ranks, an empty list. The objects travel to one rank alone, unlike `gather_objects`.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [value]
    is_first = dist.get_rank(group) == 0
    values: list[Any] | None = [None] * dist.get_world_size(group) if is_first else None
    dist.gather_object(value, values, dst=0 if group is None else dist.get_global_rank(group, 0), group=group)
    return values or []
