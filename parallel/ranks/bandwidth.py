"""How fast the links between ranks are: collectives by group, and every pair of neighbours by itself.

    in a node          the ranks of each node; all nodes at the same time
    between nodes      the ranks that have the same place on each node; all places at the same time
    all ranks          the world

A figure is the best of a few repetitions after a warm-up, as seconds for one message. Bandwidth is the
"algorithm bandwidth" of nccl-tests: the bytes of a rank's message over the seconds, however many of them the
algorithm really moves. Ranks of a node need not be numbered one after the other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.collectives import new_group

IN_NODE, BETWEEN, WORLD = "in a node", "between nodes", "all ranks"
WARM_UPS, REPETITIONS = 1, 3
Pair = tuple[int, int]


class RankNode(NamedTuple):
    """A rank and its node."""

    rank: int
    node: str


class Scope(NamedTuple):
    """Groups that are measured at the same time, of which this rank is in `own`."""

    name: str
    members: list[list[int]]
    own: list[int]
    group: dist.ProcessGroup | None


@dataclass(kw_only=True)
class Times:
    """The measurements of one rank, in seconds a message."""

    all_reduce: dict[str, float] = field(default_factory=dict)  # by the scope's name
    all_to_all: dict[str, float] = field(default_factory=dict)
    neighbours: dict[int, float] = field(default_factory=dict)  # by the other rank


def by_node(places: Sequence[RankNode]) -> list[list[int]]:
    """The ranks of each node."""
    nodes: dict[str, list[int]] = {}
    for place in places:
        nodes.setdefault(place.node, []).append(place.rank)
    return list(nodes.values())


def across(places: Sequence[RankNode]) -> list[list[int]]:
    """The ranks that have the same place on each node, as far as nodes have as many; none of one rank."""
    nodes = by_node(places)
    rings = [[node[i] for node in nodes if i < len(node)] for i in range(max(map(len, nodes)))]
    return [ring for ring in rings if len(ring) > 1]


def rounds(ring: Sequence[int]) -> list[list[Pair]]:
    """The neighbours of a ring, closed from three ranks on, as rounds in which nobody is in two pairs."""
    count = len(ring)
    pairs = [(ring[i], ring[(i + 1) % count]) for i in range(count if count > 2 else count - 1)]
    last = [pairs.pop()] if count > 2 and count % 2 else []
    return [part for part in (pairs[::2], pairs[1::2], last) if part]


@contextmanager
def scopes(places: Sequence[RankNode], rank: int) -> Iterator[list[Scope]]:
    """Make the groups to measure; every rank enters, and leaves after a last collective."""
    nodes, rings = [node for node in by_node(places) if len(node) > 1], across(places)
    several = len({place.node for place in places}) > 1
    scopes_to_make = [(IN_NODE, nodes), (BETWEEN, rings)] if several else []
    groups, result = list[dist.ProcessGroup](), list[Scope]()
    for name, members in scopes_to_make:
        for ranks in members:
            group = new_group(ranks)
            if rank in ranks:
                groups.append(group)
                result.append(Scope(name, members, ranks, group))
    if len(places) > 1:
        everyone = [place.rank for place in places]
        result.append(Scope(WORLD, [everyone], everyone, None))
    try:
        yield result
    finally:
        for group in groups:
            dist.destroy_process_group(group)


def measure(
    places: Sequence[RankNode],
    rank: int,
    device: torch.device,
    to_measure: Sequence[Scope],
    message_bytes: int,
) -> Times:
    """Time every collective and every neighbour; all ranks call it together.

    Args:
        places: of all ranks.
        rank: of this process.
        device: where the messages lie.
        to_measure: from `scopes`.
        message_bytes: of a rank in each collective, and of each direction between neighbours.
    """
    times = Times()
    for scope in to_measure:
        count = len(scope.own)
        message = torch.zeros(max(1, message_bytes // (4 * count)) * count, device=device)
        times.all_reduce[scope.name] = _best(partial(all_reduce, message, scope.group), device)
        times.all_to_all[scope.name] = _best(partial(all_to_all, message, scope.group), device)
    for ring in [*[node for node in by_node(places) if len(node) > 1], *across(places)]:
        for pairs in rounds(ring) if rank in ring else ():
            for peer in [b if a == rank else a for a, b in pairs if rank in (a, b)]:
                times.neighbours[peer] = _neighbour_s(peer, message_bytes, device)
    return times


def all_reduce(message: Tensor, group: dist.ProcessGroup | None) -> None:
    """Sum a message over a group."""
    dist.all_reduce(message, group=group)


def all_to_all(message: Tensor, group: dist.ProcessGroup | None) -> None:
    """Send an equal part of a message to each rank of a group."""
    dist.all_to_all_single(torch.empty_like(message), message, group=group)


def exchange(peer: int, sent: Tensor, received: Tensor) -> None:
    """Send to a rank what it receives, and receive what it sends, both at once."""
    swap = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(swap):
        work.wait()


def _neighbour_s(peer: int, message_bytes: int, device: torch.device) -> float:
    """Both meet first, so that neither is timed waiting for the other, whom another link may have kept."""
    sent, received = (torch.zeros(max(1, message_bytes // 4), device=device) for _ in range(2))
    meet = partial(exchange, peer, sent[:1], received[:1])
    return _best(partial(exchange, peer, sent, received), device, meet)


def _best(action: Callable[[], None], device: torch.device, meet: Callable[[], None] = lambda: None) -> float:
    """Seconds of the quickest of a few; the first ones do not count."""
    seconds = []
    for _ in range(WARM_UPS + REPETITIONS):
        meet()
        _finish(device)
        began_s = time.perf_counter()
        action()
        _finish(device)
        seconds.append(time.perf_counter() - began_s)
    return min(seconds[WARM_UPS:])


def _finish(device: torch.device) -> None:
    """Wait for the work that was launched on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
