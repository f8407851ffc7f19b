"""Which groups and pairs are measured, that measuring ends, and that a slow exchange shows where it is."""

import time
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from parallel.ranks import bandwidth as links
from parallel.ranks.bandwidth import (
    BETWEEN,
    IN_NODE,
    WORLD,
    RankNode,
    Times,
    across,
    by_node,
    measure,
    rounds,
    scopes,
)
from tests.distributed import run_on_ranks

LATE_S = 0.2


@pytest.mark.parametrize(
    ("ring", "wanted"),
    [
        ([5], []),
        ([0, 1], [[(0, 1)]]),  # one link, not two
        ([0, 1, 2], [[(0, 1)], [(1, 2)], [(2, 0)]]),
        ([0, 2, 4, 6], [[(0, 2), (4, 6)], [(2, 4), (6, 0)]]),
        ([0, 1, 2, 3, 4], [[(0, 1), (2, 3)], [(1, 2), (3, 4)], [(4, 0)]]),
    ],
)
def test_rounds_of_a_ring(ring: list[int], wanted: list[list[tuple[int, int]]]) -> None:
    assert rounds(ring) == wanted


@pytest.mark.parametrize("count", range(2, 12))
def test_every_neighbour_once_and_nobody_in_two_pairs_at_a_time(count: int) -> None:
    found = rounds(range(count))
    for pairs in found:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks))
    ring = {frozenset((i, (i + 1) % count)) for i in range(count)}
    flat = [frozenset(pair) for pairs in found for pair in pairs]
    assert len(flat) == len(ring)
    assert set(flat) == ring


def test_groups_of_nodes_that_are_not_alike() -> None:
    places = [RankNode(rank, node) for rank, node in enumerate("abacb")]
    assert by_node(places) == [[0, 2], [1, 4], [3]]
    assert across(places) == [[0, 1, 3], [2, 4]]
    assert across(places[:1]) == []


def measured(nodes: str, slow_rank: int | None = None, slow_peer: int | None = None) -> Times:
    """One rank's times on faked nodes; a rank is late with every message, or with those to one other."""
    rank = dist.get_rank()
    places = [RankNode(number, node) for number, node in enumerate(nodes)]
    original = links.exchange

    def late(peer: int, sent: torch.Tensor, received: torch.Tensor) -> None:
        if rank == slow_rank and slow_peer in (None, peer) and sent.numel() > 1:
            time.sleep(LATE_S)
        original(peer, sent, received)

    with mock.patch.object(links, "exchange", late), scopes(places, rank) as found:
        times = measure(places, rank, torch.device("cpu"), found, 4096)
        dist.barrier()
    return times


def test_what_is_measured_on_two_nodes() -> None:
    times = run_on_ranks(measured, 4, "aabb")
    for rank, peers in enumerate([[1, 2], [0, 3], [3, 0], [2, 1]]):
        assert list(times[rank].all_reduce) == list(times[rank].all_to_all) == [IN_NODE, BETWEEN, WORLD]
        assert list(times[rank].neighbours) == peers
        assert min(*times[rank].all_reduce.values(), *times[rank].neighbours.values()) > 0


def test_nodes_that_are_not_alike_are_measured() -> None:
    times = run_on_ranks(measured, 3, "aab")  # rank 1 has no counterpart, rank 2 no neighbour in its node
    assert [list(rank.all_reduce) for rank in times] == [
        [IN_NODE, BETWEEN, WORLD],
        [IN_NODE, WORLD],
        [BETWEEN, WORLD],
    ]
    assert [sorted(rank.neighbours) for rank in times] == [[1, 2], [0], [0]]


def test_a_slow_link_is_slow_at_both_ends_and_delays_no_other() -> None:
    times = run_on_ranks(measured, 4, "aaaa", 2, 3)
    late = {(rank, peer) for rank in range(4) for peer, s in times[rank].neighbours.items() if s > LATE_S / 2}
    assert late == {(2, 3), (3, 2)}


def test_one_rank_measures_nothing() -> None:
    assert run_on_ranks(measured, 1, "a") == [Times()]
