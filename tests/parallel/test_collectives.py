"""All-to-all and the journey of tokens against what one process computes by slicing, gradients included."""

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.collectives import RanksError, agree, all_to_all, exchange_counts, gather_objects, sum_over
from parallel.expert import ExpertParallel, TokenExchange, experts_of, global_name
from parallel.mesh import ParallelDims, build_mesh
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
    rows, counts = rows_of(0, 4), torch.arange(6).view(1, 6)
    assert all_to_all(rows, [4], [4], None) is rows
    assert exchange_counts(counts, None) is counts
    assert sum_over(rows) is rows
    assert gather_objects("x") == ["x"]
    assert agree(lambda: "x", (OSError,)) == ["x"]


def count_of(source: int, expert: int) -> int:
    """Rows that a rank sends to an expert: uneven, some zero; expert 3 gets none from anyone."""
    return 0 if expert == 3 else (source * 5 + expert * 3) % 4


def journeys(sizes: list[int], num_experts: int) -> list[dict[str, Any]]:
    found = []
    for ep_size in sizes:
        mesh = build_mesh(ParallelDims(world_size=dist.get_world_size(), ep_size=ep_size))
        experts = ExpertParallel.over(mesh, num_experts)
        counts = torch.tensor([count_of(mesh.rank, expert) for expert in range(num_experts)])
        found.append({"experts": experts.local_experts, **journey(mesh.rank, counts, experts)})
        found.append(journey(mesh.rank, torch.zeros_like(counts), experts))
    return found


def journey(rank: int, counts: Tensor, experts: ExpertParallel) -> dict[str, Any]:
    """Rows (expert, sender, number) go to their experts, are scaled by expert + 1 there, and come back."""
    wanted = torch.repeat_interleave(torch.arange(len(counts)), counts)
    home = torch.stack([wanted, torch.full_like(wanted, rank), torch.arange(len(wanted))], dim=1).double()
    home.requires_grad_()
    exchange = TokenExchange(counts, experts)
    away = exchange.dispatch(home)
    back = exchange.combine(away)
    scaled = exchange.combine(away * (away[:, :1].detach() + 1))
    scaled.sum().backward()
    return {
        "home": home.detach(),
        "away": away.detach(),
        "counts": exchange.local_counts,
        "back": back.detach(),
        "gradient": home.grad,
    }


@pytest.mark.parametrize(("world", "sizes"), [(2, [2, 1]), (4, [2, 4, 1])])
def test_every_row_reaches_its_expert_and_comes_home(world: int, sizes: list[int]) -> None:
    num_experts = 8
    found = run_on_ranks(journeys, world, sizes, num_experts)
    for number, ep_size in enumerate(sizes):
        dims = ParallelDims(world_size=world, ep_size=ep_size)
        for rank in range(world):
            seen, empty = found[rank][2 * number : 2 * number + 2]
            senders = dims.ep_ranks(rank)
            expected = [
                (expert, sender)
                for expert, sender in itertools.product(seen["experts"], senders)
                for _ in range(count_of(sender, expert))
            ]
            assert [(int(e), int(s)) for e, s, _ in seen["away"].tolist()] == expected
            assert seen["counts"] == [sum(count_of(s, e) for s in senders) for e in seen["experts"]]
            assert torch.equal(seen["back"], seen["home"])
            assert torch.equal(seen["gradient"], (seen["home"][:, :1] + 1).expand(-1, 3))
            assert [tuple(empty[name].shape) for name in ("away", "back", "gradient")] == [(0, 3)] * 3
            assert empty["counts"] == [0] * (num_experts // ep_size)


def test_one_process_sends_nothing_anywhere() -> None:
    exchange = TokenExchange(torch.tensor([2, 0, 1]), ExpertParallel.on_one_rank(3))
    rows = rows_of(0, 3)
    assert exchange.dispatch(rows) is rows
    assert exchange.combine(rows) is rows
    assert exchange.local_counts == [2, 0, 1]


def test_marks_and_global_names() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 5))
    assert experts_of(parameter) is None
    ExpertParallel(num_experts=8, local_experts=range(2, 4), ep_size=4).mark(parameter)
    assert (experts_of(parameter), parameter.allreduce, parameter.group_name) == (
        range(2, 4),
        False,
        "ep_size_4",
    )
    assert global_name("layers.1.mlp.experts.fc1_weight", 3) == "layers.1.mlp.experts.3.fc1_weight"


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
