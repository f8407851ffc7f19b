"""The queues of keys: their order, their end, what a skipped step does, and several ranks against one."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from launcher.tasks.moby.queues import KeyQueues, initial_keys
from tests.distributed import run_on_ranks
from tests.models import randn

SIZE, DIM, CPU = 12, 3, torch.device("cpu")


def queues() -> KeyQueues:
    return KeyQueues(SIZE, DIM, views=2, seed=1, device=CPU)


def keys_of(positions: Tensor) -> Tensor:
    """Keys that tell view, position and channel: (2, B, DIM)."""
    values = positions[:, None] + torch.arange(DIM) / 10
    return torch.stack([values, -values]).float()


def test_keys_enter_in_the_order_of_positions_and_the_oldest_leave() -> None:
    """8 keys a step in micro-batches of 4, into 12 rows: the second step wraps around."""
    filled = queues()
    first = before = filled.keys.clone()
    for step in range(2):
        for start in (4, 0):  # the order of the micro-batches does not matter
            positions = 8 * step + start + torch.tensor([2, 0, 3, 1])
            filled.keep(keys_of(positions), positions)
        assert torch.equal(filled.keys, before)  # not before the end of the step
        filled.end_step(skipped=False)
        before = filled.keys.clone()
        if step == 0:
            assert torch.equal(before[:, :8], keys_of(torch.arange(8)))
            assert torch.equal(before[:, 8:], first[:, 8:])
    assert filled.state["enqueued"].item() == 16
    rows = torch.tensor([12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11])  # 8 ... 11 fill the end, 12 ... the start
    assert torch.equal(filled.keys, keys_of(rows))


def test_a_skipped_step_leaves_them_alone() -> None:
    skipped = queues()
    skipped.keep(keys_of(torch.arange(4)), torch.arange(4))
    skipped.end_step(skipped=True)
    assert torch.equal(skipped.keys, queues().keys)
    assert skipped.state["enqueued"].item() == 0
    skipped.keep(keys_of(torch.arange(4, 8)), torch.arange(4, 8))
    skipped.end_step(skipped=False)
    assert torch.equal(skipped.keys[:, :4], keys_of(torch.arange(4, 8)))


def test_the_age_is_that_of_the_oldest_key() -> None:
    """In steps of 4 keys: none at first, then one more each step, until the queue of 12 is full."""
    aging, ages = queues(), []
    for step in range(5):
        ages.append(aging.age(4).item())
        positions = 4 * step + torch.arange(4)
        aging.keep(keys_of(positions), positions)
        aging.end_step(skipped=False)
    assert ages == [0, 1, 2, 3, 3]


def test_initial_keys_are_unit_and_of_the_seed() -> None:
    first, again, other = (initial_keys(500, 32, 2, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2, 500))
    cosines = first[0] @ first[1].T
    assert abs(cosines.mean().item()) < 0.01
    assert cosines.std().item() == pytest.approx(32**-0.5, rel=0.02)


def filled_on(ranks: int) -> Tensor:
    """Three steps of 8 samples, dealt out to the ranks in slices, in micro-batches of 2."""
    mine, rank = queues(), dist.get_rank()
    for step in range(3):
        of_rank = torch.arange(8).chunk(ranks)[rank] + 8 * step
        for positions in of_rank.split(2):
            mine.keep(randn(2, 24, DIM, seed=5)[:, positions], positions)
        mine.end_step(skipped=step == 1)
    return mine.keys


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_and_accumulation_change_nothing(ranks: int) -> None:
    (alone,) = run_on_ranks(filled_on, 1, 1)
    for found in run_on_ranks(filled_on, ranks, ranks):
        assert torch.equal(found, alone)
