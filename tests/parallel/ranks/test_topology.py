"""What a layout means for nodes and links, against text and shares worked by hand."""

from dataclasses import replace

import pytest
import torch.distributed as dist

from parallel.ranks.mesh import LayoutError, ParallelDims
from parallel.ranks.rank import Ranks
from parallel.ranks.topology import crossing_share, describe, home_of, node_sizes, sizes_of, straddling
from tests.distributed import run_on_ranks
from tests.messages import assert_names

FOUR_NODES = """\
layout: 32 ranks on 4 nodes of 8
  experts          4 groups of 8: [0-7] [8-15] [16-23] [24-31], each inside a node
  all-to-all       within each node; no row crosses between nodes
  expert gradients 8 groups of 4: [0 8 16 24] [1 9 17 25] ... [7 15 23 31], each over 4 nodes
  dense gradients  all 32 ranks, over 4 nodes"""
# [0-3] and [8-11] lie inside; of [4-7] two ranks lie on each node, half of whose rows cross: 1/3 * 1/2
STRADDLING = """\
layout: 12 ranks on 2 nodes of 6
  experts          3 groups of 4: [0-3] [4-7] [8-11], each over 1 or 2 nodes
  all-to-all       inside and between nodes; 17% of the rows cross nodes under even load
  expert gradients 4 groups of 3: [0 4 8] [1 5 9] [2 6 10] [3 7 11], each over 2 nodes
  dense gradients  all 12 ranks, over 2 nodes
  warning: 1 of 3 expert groups straddle nodes, such as [4-7], though 4 ranks fit into one: \
parallel.ep_size=3 would keep them inside"""
# degree 2: weights come together over pairs, rows travel among every second rank: 8 peers, half away
WIDE = """\
layout: 64 ranks on 8 nodes of 8
  experts          4 groups of 16: [0-15] [16-31] [32-47] [48-63], each over 2 nodes; \
an expert is cut over 2 neighbours
  expert weights   32 groups of 2: [0-1] [2-3] ... [62-63], each inside a node
  all-to-all       inside and between nodes; 50% of the rows cross nodes under even load
  expert gradients 16 groups of 4: [0 16 32 48] [1 17 33 49] ... [15 31 47 63], each over 4 nodes
  dense gradients  all 64 ranks, over 8 nodes"""
ONE_A_NODE = """\
layout: 4 ranks on 4 nodes of 1
  experts          2 groups of 2: [0-1] [2-3], each over 2 nodes
  all-to-all       between nodes; 50% of the rows cross nodes under even load
  expert gradients 2 groups of 2: [0 2] [1 3], each over 2 nodes
  dense gradients  all 4 ranks, over 4 nodes"""
COPIES = """\
layout: 6 ranks on 2 nodes of 2 to 4
  experts          all of them on every rank
  all-to-all       none: no row leaves its rank
  expert gradients 1 group of 6: [0-5], over 2 nodes
  dense gradients  all 6 ranks, over 2 nodes"""
ONE_GROUP = """\
layout: 8 ranks on one node
  experts          1 group of 8: [0-7], inside a node
  all-to-all       within the node
  expert gradients no reduction needed: each expert is on one rank
  dense gradients  all 8 ranks, inside a node"""


@pytest.mark.parametrize(
    ("dims", "nodes", "degree", "text"),
    [
        (ParallelDims(world_size=32, ep_size=8), [8] * 4, 1, FOUR_NODES),
        (ParallelDims(world_size=12, ep_size=4), [6, 6], 1, STRADDLING),
        (ParallelDims(world_size=64, ep_size=16, expert_tensor_parallel_size=2), [8] * 8, 2, WIDE),
        (ParallelDims(world_size=4, ep_size=2), [1] * 4, 1, ONE_A_NODE),
        (ParallelDims(world_size=6), [4, 2], 1, COPIES),
        (ParallelDims(world_size=8, ep_size=8), [8], 1, ONE_GROUP),
    ],
)
def test_a_layout_in_words(dims: ParallelDims, nodes: list[int], degree: int, text: str) -> None:
    assert "\n".join(describe(dims, nodes, degree=degree)) == text


def test_a_model_without_experts() -> None:
    assert describe(ParallelDims(world_size=4), [2, 2], experts=False) == [
        "layout: 4 ranks on 2 nodes of 2",
        "  dense gradients  all 4 ranks, over 2 nodes",
    ]


@pytest.mark.parametrize(
    ("ep_size", "slices", "nodes", "fix"),
    [
        (4, 1, [6, 6], "parallel.ep_size=3 would keep them inside"),
        (8, 2, [12, 12], "parallel.ep_size=6 would keep them inside"),
        (8, 4, [12, 12], "parallel.ep_size=4 would keep them inside"),
        (4, 4, [6, 6], "as many ranks on every node, a multiple of 4, would do"),
        (4, 1, [4, 3, 1], "as many ranks on every node, a multiple of 4, would do"),
        (2, 1, [3, 3], "parallel.ep_size=3 would keep them inside"),
    ],
)
def test_the_fix_for_a_straddling_group_is_one(ep_size: int, slices: int, nodes: list[int], fix: str) -> None:
    dims = ParallelDims(world_size=sum(nodes), ep_size=ep_size, expert_tensor_parallel_size=slices)
    assert describe(dims, nodes)[-1].endswith(f" ranks fit into one: {fix}")
    if fix.startswith("parallel.ep_size="):
        better = replace(dims, ep_size=int(fix.split()[0].partition("=")[2]))
        assert straddling(better, nodes) == []


@pytest.mark.parametrize(("ep_size", "nodes"), [(8, [4, 4]), (4, [4, 4, 4]), (1, [3, 5]), (12, [8, 4])])
def test_a_group_that_fits_into_no_node_does_not_straddle(ep_size: int, nodes: list[int]) -> None:
    assert straddling(ParallelDims(world_size=sum(nodes), ep_size=ep_size), nodes) == []


def test_the_share_of_rows_that_cross() -> None:
    """One group of 6 on nodes of 4 and 2: 4 ranks send 2/6 away, 2 ranks 4/6; in the mean 4/9."""
    assert crossing_share(ParallelDims(world_size=6, ep_size=6), home_of([4, 2])) == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    ("places", "sizes"),
    [
        ([(0, 1)], [1]),
        ([(0, 2), (1, 2), (0, 2), (1, 2)], [2, 2]),
        ([(0, 2), (1, 2), (0, 1), (0, 3), (1, 3), (2, 3)], [2, 1, 3]),
        ([(0, 1)] * 4, [1] * 4),
    ],
)
def test_the_sizes_of_nodes(places: list[tuple[int, int]], sizes: list[int]) -> None:
    assert sizes_of(places) == sizes


@pytest.mark.parametrize(
    ("places", "said"),
    [
        # mpirun --map-by node, srun --distribution=cyclic
        ([(0, 2), (0, 2), (1, 2), (1, 2)], "from 0 on are 0 of 2 0 of 2"),
        ([(0, 1), (0, 2), (0, 1), (1, 2)], "from 1 on are 0 of 2 0 of 1"),
        ([(0, 2), (0, 1), (1, 2)], "from 0 on are 0 of 2 0 of 1"),  # three ranks: 0 and 2 on one node
        ([(0, 2), (1, 2), (0, 2)], "from 2 on are 0 of 2"),  # one is missing
        ([(1, 2), (0, 2)], "from 0 on are 1 of 2 0 of 2"),
    ],
)
def test_ranks_that_are_not_numbered_node_after_node(places: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(LayoutError) as error:
        sizes_of(places)
    parts = (said, "mpirun --map-by slot", "srun --distribution=block")
    assert_names(str(error.value), *parts)


def sizes_from(places: list[tuple[int, int]]) -> list[int] | str:
    """What each rank finds, with a made-up place on a made-up node."""
    local_rank, local_size = places[dist.get_rank()]
    ranks = Ranks(rank=dist.get_rank(), world_size=4, local_rank=local_rank, local_world_size=local_size)
    try:
        return node_sizes(ranks)
    except LayoutError as error:
        return str(error).partition(",")[0]


def test_four_ranks_find_their_nodes() -> None:
    assert run_on_ranks(sizes_from, 4, [(0, 3), (1, 3), (2, 3), (0, 1)]) == [[3, 1]] * 4
    refused = "ranks must be numbered node after node"
    assert run_on_ranks(sizes_from, 4, [(0, 2), (0, 2), (1, 2), (1, 2)]) == [refused] * 4
