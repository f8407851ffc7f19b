"""Collectives that gradients flow through; a group of None is one process, where each is the identity."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class RanksError(ValueError):
    """Something failed on one or more ranks; it is raised on all of them, with the same message."""


class Flight:
    """One all-to-all, and in backward its mirror, that may be under way while others compute.

    `start` sends and returns at once; `finish` waits. Their backwards are each other's: the gradient leaves
    where the rows landed, and is waited for where they started. Autograd runs backward what was made last
    first, so that whatever lay between the two overlaps with the gradient's way too.

    Args:
        send: rows for each rank of the group.
        receive: rows from each rank of the group.
        group: of the ranks.
    """

    def __init__(self, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> None:
        self._send, self._receive, self._group = list(send), list(receive), group
        self._under_way: tuple[Tensor, Tensor, dist.Work | None] | None = None

    def start(self, rows: Tensor) -> Tensor:
        """(sum(send), ...) sorted by destination -> a ticket for `finish`, an empty tensor."""
        return _Start.apply(rows, self)

    def finish(self, ticket: Tensor) -> Tensor:
        """What `start` returned -> (sum(receive), ...), sorted by source rank."""
        return _Finish.apply(ticket, self)

    def launch(self, rows: Tensor, *, mirrored: bool) -> Tensor:
        """Send, against the direction if `mirrored`; returns an empty tensor."""
        send, receive = (self._receive, self._send) if mirrored else (self._send, self._receive)
        # gloo accepts a non-contiguous output and silently fills it wrongly: the output is always made fresh
        arriving, leaving = rows.new_empty(sum(receive), *rows.shape[1:]), rows.contiguous()
        work = dist.all_to_all_single(arriving, leaving, receive, send, group=self._group, async_op=True)
        self._under_way = arriving, leaving, work  # both alive until they are where they go
        return rows.new_empty(0)

    def land(self) -> Tensor:
        """Wait for what was launched, and return it."""
        assert self._under_way is not None
        (arriving, _, work), self._under_way = self._under_way, None
        assert work is not None  # this rank is in the group
        work.wait()
        return arriving


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return flight.launch(rows, mirrored=False)

    @staticmethod
    def backward(ctx: Any, ticket: Tensor) -> tuple[Tensor, None]:
        return ctx.flight.land(), None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ticket: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return flight.land()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.flight.launch(grad, mirrored=True), None


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
    flight = Flight(send, receive, group)
    return flight.finish(flight.start(rows))


def new_group(ranks: Sequence[int] | None = None, **options: Any) -> dist.ProcessGroup:
    """Make a process group as `torch.distributed.new_group` does; every rank of the world calls it.

    Only the ranks of the group may use what it returns: the others get a number in its place.
    """
    return cast(dist.ProcessGroup, dist.new_group(list(ranks) if ranks is not None else None, **options))


def sum_over(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor in place over the ranks of `group`, or of the whole world, and return it."""
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(values, group=group)
    return values


def agree(
    action: Callable[[], T],
    errors: tuple[type[BaseException], ...],
    group: dist.ProcessGroup | None = None,
) -> list[T]:
    """Run a local action on every rank and return every rank's result; if one rank fails, all raise.

    Args:
        action: local; it may not wait for other ranks.
        errors: what counts as a failure of this rank; anything else is a bug and passes through.
        group: of all ranks; None is the default group.

    Raises:
        RanksError: with every distinct reason and the ranks it is of.
    """
    try:
        outcome: tuple[bool, Any] = (True, action())
    except errors as error:
        outcome = (False, str(error))
    outcomes = gather_objects(outcome, group)
    reasons: dict[str, list[int]] = {}
    for rank, (succeeded, value) in enumerate(outcomes):
        if not succeeded:
            reasons.setdefault(value, []).append(rank)
    if not reasons:
        return [value for _, value in outcomes]
    if list(reasons.values()) == [list(range(len(outcomes)))]:
        raise RanksError(next(iter(reasons)))
    raise RanksError("; ".join(f"rank {', '.join(map(str, of))}: {text}" for text, of in reasons.items()))


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """One small object from every rank of `group`, or of the whole world, in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
