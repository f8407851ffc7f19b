"""All-to-all against what one process computes by slicing, gradients included; marks of parameters."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.experts.placement import (
    ExpertParallel,
    ExpertSlice,
    Sliced,
    copy_mark,
    experts_of,
    global_name,
    sliced_of,
)
from parallel.ranks.collectives import RanksError, agree, all_to_all, gather_objects, sum_over
from tests.distributed import run_on_ranks

WIDTH = 3
SPLITS = {  # row r: what rank r sends to each rank
    "even, 2 ranks": [[2, 2], [2, 2]],
    "uneven, 2 ranks": [[0, 3], [1, 2]],
    "uneven, 3 ranks": [[1, 0, 4], [2, 2, 0], [0, 5, 1]],
    "a rank that sends nothing": [[0, 0, 0], [3, 1, 2], [0, 2, 2]],
    "a rank that receives nothing": [[0, 2, 1, 1], [0, 1, 0, 3], [0, 0, 2, 2], [0, 1, 1, 1]],
    "no rows at all": [[0, 0], [0, 0]],
}


def rows_of(rank: int, count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(rank))


def weights_of(rank: int, count: int) -> Tensor:
    """What the receiver multiplies its rows with: the gradient that flows back."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(100 + rank))


def exchange_all(cases: list[list[list[int]]]) -> list[tuple[Tensor, Tensor]]:
    """Values received and gradients of the rows sent, for each table of splits."""
    rank, found = dist.get_rank(), []
    for splits in cases:
        rows = rows_of(rank, sum(splits[rank])).requires_grad_()
        # a view that is not contiguous, as a slice of channels would be
        view = torch.stack([rows, rows], dim=-1)[..., 0]
        receive = [line[rank] for line in splits]
        received = all_to_all(view, splits[rank], receive, dist.group.WORLD)
        (received * weights_of(rank, sum(receive))).sum().backward()
        found.append((received.detach(), rows.grad))
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
def test_rows_and_gradients_are_those_of_slicing(world: int) -> None:
    cases = [splits for splits in SPLITS.values() if len(splits) == world]
    found = run_on_ranks(exchange_all, world, cases)
    for number, splits in enumerate(cases):
        sent = [rows_of(rank, sum(splits[rank])).split(splits[rank]) for rank in range(world)]
        columns = [[line[rank] for line in splits] for rank in range(world)]
        weights = [weights_of(rank, sum(columns[rank])).split(columns[rank]) for rank in range(world)]
        for rank in range(world):
            received, gradient = found[rank][number]
            assert torch.equal(received, torch.cat([pieces[rank] for pieces in sent]))
            assert torch.equal(gradient, torch.cat([pieces[rank] for pieces in weights]))


def test_one_process_is_the_identity() -> None:
    rows = rows_of(0, 4)
    assert all_to_all(rows, [4], [4], None) is rows
    assert sum_over(rows) is rows
    assert gather_objects("x") == ["x"]
    assert agree(lambda: "x", (OSError,)) == ["x"]


def test_marks_and_global_names() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 5))
    assert experts_of(parameter) is None
    ExpertParallel(num_experts=8, local_experts=range(2, 4), ep_size=4).mark(parameter)
    assert (experts_of(parameter), parameter.allreduce, parameter.group_name) == (
        range(2, 4),
        False,
        "ep_size_4",
    )
    assert sliced_of(parameter) is None
    assert global_name("layers.1.mlp.experts.fc1_weight", 3) == "layers.1.mlp.experts.3.fc1_weight"


def test_a_slice_holds_its_columns_and_a_parameter_in_its_place_too() -> None:
    # 7 columns over 3 slices: 0 1 | 2 3 | 4 5 6
    parts = [ExpertSlice(i, i + 1, 3) for i in range(3)]
    assert [part.range(7) for part in parts] == [range(2), range(2, 4), range(4, 7)]
    assert ExpertSlice(1, 3, 3).range(7) == range(2, 7)
    placement = ExpertParallel(num_experts=2, local_experts=range(2), part=parts[2], ep_size=3)
    parameter = torch.nn.Parameter(torch.zeros(2, 5, 3))
    placement.mark(parameter, sliced_dim=2, full_size=7)
    other = torch.nn.Parameter(torch.ones(2, 5, 3))
    copy_mark(parameter, other)
    assert sliced_of(other) == Sliced(2, parts[2], 7)
    assert experts_of(other) == range(2)
    whole = torch.arange(70).view(2, 5, 7)
    assert torch.equal(sliced_of(other).take(whole), whole[:, :, 4:])
    with pytest.raises(AssertionError, match="own what it holds"):
        placement.mark(parameter)


def agreements() -> list[str]:
    """What agree says when all succeed, when one rank fails, and when all fail alike."""
    rank = dist.get_rank()

    def fail(ranks: list[int], text: str) -> int:
        if rank in ranks:
            raise OSError(text)
        return rank * 10

    said = [str(agree(lambda: fail([], ""), (OSError,)))]
    for ranks, text in (([1], "disk full"), ([0, 2], "no such file"), ([0, 1, 2], "gone")):
        try:
            agree(lambda r=ranks, t=text: fail(r, t), (OSError,))
        except RanksError as error:
            said.append(str(error))
    return said


def test_a_failure_of_one_rank_is_raised_on_all_with_its_name() -> None:
    said = ["[0, 10, 20]", "rank 1: disk full", "rank 0, 2: no such file", "gone"]
    assert run_on_ranks(agreements, 3) == [said] * 3
