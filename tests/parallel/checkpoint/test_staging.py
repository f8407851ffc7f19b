"""A rank's share of a checkpoint: together the shares are every tensor once, however each was read."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from parallel.checkpoint.staging import Slabs, StagingBuffers
from parallel.zero.master_weights import MasterWeights
from tests.distributed import run_on_ranks
from tests.parallel.resuming import state_of
from tests.parallel.training import Layout, Run, gather_tensors

LAYOUTS = [
    Layout(world=4, ep=2, stage=1, micro=4),
    Layout(world=4, ep=4, stage=1, micro=4, precision="bf16"),
    Layout(world=4, ep=2, slices=2, stage=3, micro=4),
]
Share = dict[str, Tensor]


@pytest.mark.parametrize("slab", [256, 4096])
def test_tensors_are_taken_out_of_few_allocations(slab: int) -> None:
    slabs, shapes = (
        Slabs(pinned=False, slab_bytes=slab),
        [(3,), (2, 5), (), (0, 4), (7, 7), (64,), (100, 30), (1,)],
    )
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool]
    made = [slabs.empty(shape, dtype) for shape in shapes for dtype in dtypes]
    for number, tensor in enumerate(made):
        tensor.fill_(number % 2 if tensor.dtype == torch.bool else number)
    for number, tensor in enumerate(made):  # none lies on another
        assert (tensor == (number % 2 if tensor.dtype == torch.bool else number)).all()
        assert tensor.data_ptr() % tensor.element_size() == 0
    assert [tuple(tensor.shape) for tensor in made[:: len(dtypes)]] == shapes
    large = sum(tensor.nbytes for tensor in made if tensor.nbytes > slab)
    assert (slabs.reserved - large) % slab == 0


def test_a_slab_is_full_before_there_is_another() -> None:
    slabs = Slabs(pinned=False)
    for _ in range(1000):
        slabs.empty((1000,), torch.float32)
    assert slabs.reserved == 2**26


def take(layout: Layout) -> tuple[list[Share], Share, int, bool]:
    """The shares of all ranks, the whole state, parameters read together, whether memory is used again."""
    run = Run.start(layout)
    masters, buffers = MasterWeights(run.engine.deepspeed), StagingBuffers()
    run.train(2)
    with mock.patch.object(masters, "read", wraps=masters.read) as read:
        share = buffers.copy(masters, run.mesh)
    calls, copies = read.call_count, {name: tensor.clone() for name, tensor in share.items()}
    state = state_of(masters)
    run.train(1)
    unchanged = all(torch.equal(copies[name], tensor) for name, tensor in share.items())
    again = buffers.copy(masters, run.mesh)
    reused = all(again[name].data_ptr() == tensor.data_ptr() for name, tensor in share.items())
    return gather_tensors(copies), state, calls, unchanged and reused


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
