"""Layouts by hand, the words of their errors, and the groups on real ranks."""

import pytest
import torch
import torch.distributed as dist

from parallel.ranks.mesh import LayoutError, Mesh, ParallelDims, build_mesh
from tests.distributed import run_on_ranks
from tests.messages import assert_names


def test_one_process_is_the_default() -> None:
    mesh = Mesh(dims=ParallelDims())
    assert (mesh.dims.dp_size, mesh.ep_rank, mesh.is_first) == (1, 0, True)
    assert (mesh.ep_group, mesh.expert_dp_group) == (None, None)
    assert mesh.dims.local_experts(0, 8) == range(8)


def test_four_ranks_of_which_two_share_the_experts() -> None:
    # rank       0    1    2    3
    # experts   0-3  4-7  0-3  4-7
    dims = ParallelDims(world_size=4, ep_size=2)
    assert dims.dp_size == 2
    assert [dims.ep_ranks(rank) for rank in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [dims.expert_dp_ranks(rank) for rank in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    experts = [dims.local_experts(rank, 8) for rank in range(4)]
    assert experts == [range(4), range(4, 8), range(4), range(4, 8)]


def test_eight_ranks_of_which_four_share_the_experts() -> None:
    # rank       0    1    2    3    4    5    6    7
    # experts   0-1  2-3  4-5  6-7  0-1  2-3  4-5  6-7
    dims = ParallelDims(world_size=8, ep_size=4)
    assert dims.dp_size == 2
    assert dims.ep_ranks(6) == [4, 5, 6, 7]
    assert dims.expert_dp_ranks(6) == [2, 6]
    assert dims.local_experts(6, 8) == range(4, 6)


def test_all_ranks_share_the_experts_or_none_does() -> None:
    spread, copied = ParallelDims(world_size=4, ep_size=4), ParallelDims(world_size=4, ep_size=1)
    assert (spread.ep_ranks(3), spread.expert_dp_ranks(3)) == ([0, 1, 2, 3], [3])
    assert (copied.ep_ranks(3), copied.expert_dp_ranks(3)) == ([3], [0, 1, 2, 3])
    assert [spread.local_experts(rank, 4) for rank in range(4)] == [range(r, r + 1) for r in range(4)]
    assert [copied.local_experts(rank, 4) for rank in range(4)] == [range(4)] * 4


@pytest.mark.parametrize(("world", "ep"), [(4, 3), (2, 4), (4, 0), (4, -2)])
def test_sizes_that_do_not_divide_are_an_equation(world: int, ep: int) -> None:
    with pytest.raises(LayoutError) as error:
        ParallelDims(world_size=world, ep_size=ep)
    assert_names(str(error.value), f"parallel.ep_size ({ep})", f"ranks ({world})")


def test_experts_that_do_not_divide_are_spread_unevenly() -> None:
    # 6 experts over 4 ranks: 6 * b // 4 = 0, 1, 3, 4, 6
    dims = ParallelDims(world_size=4, ep_size=4)
    experts = [dims.local_experts(rank, 6) for rank in range(4)]
    assert experts == [range(1), range(1, 3), range(3, 4), range(4, 6)]


def test_two_slices_of_each_expert_lie_on_neighbouring_ranks() -> None:
    # rank     0    1    2    3        expert 0 in two slices on ranks 0 and 1, experts 1 and 2 on 2 and 3
    dims = ParallelDims(world_size=4, ep_size=4, expert_tensor_parallel_size=2)
    assert [dims.local_experts(rank, 3) for rank in range(4)] == [range(1)] * 2 + [range(1, 3)] * 2
    assert dims.dp_size == 1
    # weights gathered over 2: ranks 0 and 1 hold expert 0, ranks 2 and 3 the others; rows go 0 <-> 2, 1 <-> 3
    assert [dims.gather_ranks(rank, 2) for rank in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [dims.exchange_ranks(rank, 2) for rank in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert dims.exchange_ranks(3, 1) == [0, 1, 2, 3]
    assert dims.exchange_ranks(3, 4) == [3]


def test_more_blocks_than_experts_is_an_equation_with_its_remedy() -> None:
    with pytest.raises(LayoutError) as error:
        ParallelDims(world_size=8, ep_size=8).local_experts(1, 3)
    parts = ("parallel.ep_size (8) / parallel.expert_tensor_parallel_size (1)", "model.moe.num_experts (3)")
    assert_names(str(error.value), *parts, "parallel.expert_tensor_parallel_size=4")
    assert ParallelDims(world_size=8, ep_size=8, expert_tensor_parallel_size=4).local_experts(4, 3) == range(
        1, 3
    )


def test_slices_that_do_not_divide_are_an_equation() -> None:
    with pytest.raises(LayoutError) as error:
        ParallelDims(world_size=4, ep_size=4, expert_tensor_parallel_size=3)
    assert_names(str(error.value), "parallel.expert_tensor_parallel_size (3)", "parallel.ep_size (4)")


@pytest.mark.parametrize(
    ("degree", "fits"), [(1, True), (2, True), (4, True), (8, True), (3, False), (0, False)]
)
def test_gather_degrees_divide_the_expert_group(degree: int, fits: bool) -> None:
    dims = ParallelDims(world_size=8, ep_size=8, expert_tensor_parallel_size=4)
    if fits:
        dims.check_gather_degree(degree)
    else:
        with pytest.raises(LayoutError, match=rf"strategy \({degree}\) must divide parallel.ep_size \(8\)"):
            dims.check_gather_degree(degree)
    with pytest.raises(
        LayoutError, match=r"divide parallel.expert_tensor_parallel_size \(3\) or be a multiple of it"
    ):
        ParallelDims(world_size=6, ep_size=6, expert_tensor_parallel_size=3).check_gather_degree(2)


def test_a_hierarchy_needs_equal_shares_of_nodes() -> None:
    ParallelDims(world_size=8, ep_size=8).check_hierarchy(4)
    ParallelDims(world_size=8, ep_size=2).check_hierarchy(4)  # in one node
    ParallelDims(world_size=6, ep_size=2).check_hierarchy(3)  # one node, or one rank on each of two
    with pytest.raises(LayoutError, match=r"ep_size \(6\) on nodes of 4 ranks gives \[4, 2\]"):
        ParallelDims(world_size=6, ep_size=6).check_hierarchy(4)
    # at gather degree 2 ranks 0, 2, 4 exchange: two of them on the first node
    with pytest.raises(LayoutError, match=r"gives \[2, 1\]"):
        ParallelDims(world_size=6, ep_size=6).check_hierarchy(4, degree=2)


def groups_of(sizes: list[int]) -> list[tuple[int, int, list[int], list[int], float, float]]:
    """For each size: rank, expert rank, both groups' ranks, and the sum of the ranks over each."""
    found = []
    for ep_size in sizes:
        mesh = build_mesh(ParallelDims(world_size=dist.get_world_size(), ep_size=ep_size))
        sums = torch.full((2,), float(mesh.rank))
        dist.all_reduce(sums[:1], group=mesh.ep_group)
        dist.all_reduce(sums[1:], group=mesh.expert_dp_group)
        groups = [dist.get_process_group_ranks(group) for group in (mesh.ep_group, mesh.expert_dp_group)]
        found.append((mesh.rank, mesh.ep_rank, *groups, *sums.tolist()))
    return found


def test_the_groups_reduce_over_the_ranks_of_the_arithmetic() -> None:
    sizes = [1, 2, 4, 2]  # twice: groups can be made again
    for rank, found in enumerate(run_on_ranks(groups_of, 4, sizes)):
        for ep_size, seen in zip(sizes, found, strict=True):
            dims = ParallelDims(world_size=4, ep_size=ep_size)
            ep, expert_dp = dims.ep_ranks(rank), dims.expert_dp_ranks(rank)
            assert seen == (rank, rank % ep_size, ep, expert_dp, sum(ep), sum(expert_dp))
