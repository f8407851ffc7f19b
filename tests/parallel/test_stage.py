"""A rank's share of a checkpoint: together the shares are every tensor once, however each was read."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from parallel.collectives import gather_objects
from parallel.masters import Masters
from parallel.stage import Stage
from tests.distributed import run_on_ranks
from tests.parallel.resuming import state_of
from tests.parallel.training import Layout, Run

LAYOUTS = [
    Layout(world=4, ep=2, stage=1, micro=4),
    Layout(world=4, ep=4, stage=1, micro=4, precision="bf16"),
    Layout(world=4, ep=2, slices=2, stage=3, micro=4),
]
Share = dict[str, Tensor]


def take(layout: Layout) -> tuple[list[Share], Share, int, bool]:
    """The shares of all ranks, the whole state, parameters read together, whether memory is used again."""
    run = Run.start(layout)
    masters, stage = Masters(run.engine.deepspeed), Stage()
    run.train(2)
    with mock.patch.object(masters, "read", wraps=masters.read) as read:
        share = stage.take(masters, run.mesh)
    calls, copies = read.call_count, {name: tensor.clone() for name, tensor in share.items()}
    state = state_of(masters)
    run.train(1)
    unchanged = all(torch.equal(copies[name], tensor) for name, tensor in share.items())
    again = stage.take(masters, run.mesh)
    reused = all(again[name].data_ptr() == tensor.data_ptr() for name, tensor in share.items())
    return gather_objects(copies), state, calls, unchanged and reused


def take_all() -> list[tuple[list[Share], Share, int, bool]]:
    return [take(layout) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def taken() -> dict[Layout, tuple[list[Share], Share, int, bool]]:
    return dict(zip(LAYOUTS, run_on_ranks(take_all, 4)[0], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_shares_are_the_whole_state_each_tensor_once(layout: Layout, taken: dict[Layout, tuple]) -> None:
    shares, state, calls, kept = taken[layout]
    assert sum(map(len, shares)) == len(state)
    for share in shares:
        assert all(torch.equal(tensor, state[name]) for name, tensor in share.items())
    sizes = [sum(tensor.nbytes for tensor in share.values()) for share in shares]
    assert max(sizes) < 1.5 * sum(sizes) / 4
    assert kept
    if layout.stage < 3:  # which cuts every parameter; the others only those on a partition's boundary
        assert calls < len({name.partition("/")[2] for name in state}) / 3
