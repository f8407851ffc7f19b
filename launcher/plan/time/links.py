"""Seconds of collectives over a group of ranks, by the bytes, steps and messages of their algorithms.

Reductions and gathers are rings that use every network port of a node at once, or, where that waits less, a
tree over the nodes, as NCCL chooses (src/graph/tuning.cc). An all-to-all is linear, a message to every rank,
or in two stages (Hwang et al. 2023, "Tutel", section 3.4): inside the node, then across, so that a message
to a node carries what all its ranks there get. Two stages move the bytes twice and send fewer messages.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from launcher.plan.base.hardware import Hardware, Link
from parallel.ranks.dims import ParallelDims
from parallel.ranks.topology import home_of


class RankGroup(NamedTuple):
    """The shape of a group: its ranks, and how many of them share a node."""

    size: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Over which it lies."""
        return math.ceil(self.size / self.per_node)


def shape_of(ranks: Sequence[int], home: Sequence[int]) -> RankGroup:
    """Of a group of ranks, `home` being the node of every rank; uneven shares count as the most common."""
    nodes = [home[rank] for rank in ranks]
    counts = sorted(nodes.count(node) for node in set(nodes))
    return RankGroup(len(ranks), counts[len(counts) // 2])


class RankGroups(NamedTuple):
    """The groups of a layout, as the first rank sees them."""

    world: RankGroup
    copies: RankGroup  # of the same experts
    exchange: RankGroup
    gather: RankGroup


def groups_of(dims: ParallelDims, nodes: Sequence[int], degree: int) -> RankGroups:
    """The groups at a gather degree (parallel/experts/exchange.py); found once for each layout."""
    return _groups_of(dims, tuple(nodes), degree)


@lru_cache(maxsize=1024)
def _groups_of(dims: ParallelDims, nodes: tuple[int, ...], degree: int) -> RankGroups:
    home = home_of(nodes)
    lists: Iterable[Sequence[int]] = (
        range(dims.world_size),
        dims.expert_dp_ranks(0),
        dims.exchange_ranks(0, degree),
        dims.gather_ranks(0, degree),
    )
    return RankGroups(*(shape_of(ranks, home) for ranks in lists))


def all_reduce_s(hardware: Hardware, group: RankGroup, size: float) -> float:
    """Seconds to sum `size` bytes of every rank at every rank."""
    return _ring_s(hardware, group, size, rounds=2)


def gather_s(hardware: Hardware, group: RankGroup, size: float) -> float:
    """Seconds of an all-gather, or of a reduce-scatter: `size` bytes altogether at a rank."""
    return _ring_s(hardware, group, size, rounds=1)


def _ring_s(hardware: Hardware, group: RankGroup, size: float, rounds: int) -> float:
    if group.size == 1 or size == 0:
        return 0.0
    inside, between = hardware.in_node, hardware.between
    gb_s = inside.gb_s if group.nodes == 1 else between.gb_s * group.per_node
    if group.per_node > 1:
        gb_s = min(gb_s, inside.gb_s)
    steps = group.size - 1
    crossing = group.nodes - 1
    ring_us = crossing * between.step_us + (steps - crossing) * inside.step_us
    tree_us = math.ceil(math.log2(group.nodes)) * between.step_us + (group.per_node - 1) * inside.step_us
    waits_us = min(ring_us, tree_us) if rounds == 2 else ring_us
    moved = rounds * size * steps / group.size
    return (hardware.start_us + rounds * waits_us) * 1e-6 + moved / (gb_s * 1e9)


def split_bytes(group: RankGroup, size: float) -> tuple[float, float]:
    """Of `size` bytes for all ranks of a group alike, those to other ranks of the node and to other nodes."""
    return size * (group.per_node - 1) / group.size, size * (group.size - group.per_node) / group.size


def linear_s(hardware: Hardware, group: RankGroup, size: float) -> float:
    """Seconds of an all-to-all of one message for each pair; `size` bytes leave a rank, its own included."""
    if group.size == 1:
        return 0.0
    near, far = split_bytes(group, size)
    inside_s = _messages_s(hardware.in_node, near, group.per_node - 1)
    between_s = _messages_s(hardware.between, far, group.size - group.per_node)
    return hardware.start_us * 1e-6 + max(inside_s, between_s)


def hierarchical_s(hardware: Hardware, group: RankGroup, size: float) -> float:
    """Seconds of an all-to-all in two stages; that of one where the group is no grid of nodes."""
    per_node, nodes = group.per_node, group.nodes
    if 1 in (per_node, nodes):
        return linear_s(hardware, group, size)
    inside_s = _messages_s(hardware.in_node, size * (per_node - 1) / per_node, per_node - 1)
    between_s = _messages_s(hardware.between, size * (nodes - 1) / nodes, nodes - 1)
    return 2 * hardware.start_us * 1e-6 + inside_s + _reorder_s(hardware, size) + between_s


def crossover_bytes(hardware: Hardware, group: RankGroup) -> float:
    """The bytes of a rank below which two stages beat one message for each pair; 0 where they never do.

    Linear waits for (n - g) messages between nodes, two stages for (n / g - 1) of them and (g - 1) inside the
    node, and move (g - 1) / g of the bytes inside the node, and all of them in memory, on top:
    S (1/B_in (g-1)/g + 2/B_mem) = (n - g) m - (n/g - 1) m - (g - 1) m_in - start.
    """
    per_node, nodes = group.per_node, group.nodes
    if 1 in (per_node, nodes):
        return 0.0
    inside, between = hardware.in_node, hardware.between
    saved_us = (group.size - per_node - (nodes - 1)) * between.message_us
    added_us = (per_node - 1) * inside.message_us + hardware.start_us
    a_byte_s = (per_node - 1) / per_node / (inside.all_to_all_gb_s * 1e9) + _reorder_s(hardware, 1.0)
    return max(0.0, (saved_us - added_us) * 1e-6 / a_byte_s)


def _messages_s(link: Link, size: float, messages: int) -> float:
    return messages * link.message_us * 1e-6 + size / (link.all_to_all_gb_s * 1e9)


def _reorder_s(hardware: Hardware, size: float) -> float:
    """Rows are read and written once in memory between the stages."""
    return 2 * size / (hardware.memory_gb_s * hardware.memory_efficiency * 1e9)
