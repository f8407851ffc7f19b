"""The global order against hand-worked numbers and a slow second implementation."""

import time

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.rng import Purpose, permutation
from data_shards.order.global_order import GlobalOrder


def sizes(total: int, shard: int) -> np.ndarray:
    return np.array([min(shard, total - i) for i in range(0, total, shard)], dtype=np.int64)


def slow_epoch(
    per_shard: np.ndarray, seed: int, epoch: int, segments: int, buffer: int
) -> list[tuple[int, int]]:
    """The whole epoch as lists, straight from the definition."""
    shards = permutation(len(per_shard), Purpose.SHARDS, seed, epoch).tolist()
    stream = [(shard, row) for shard in shards for row in range(per_shard[shard])]
    cut, start = [], 0
    for segment in range(segments):
        size = len(range(segment, len(stream), segments))
        piece, start = stream[start : start + size], start + size
        mixed = []
        for number, first in enumerate(range(0, size, buffer)):
            inside = piece[first : first + buffer]
            words = Purpose.WINDOW, seed, epoch, segment, number
            mixed += [inside[i] for i in permutation(len(inside), *words).tolist()]
        cut.append(mixed)
    return [cut[q % segments][q // segments] for q in range(len(stream))]


@pytest.mark.parametrize("total", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize(("segments", "buffer"), [(64, 4096), (64, 3), (5, 7), (1, 10)])
def test_equals_the_slow_implementation(total: int, segments: int, buffer: int) -> None:
    per_shard = sizes(total, 37)
    order = GlobalOrder(per_shard, seed=11, interleave=segments, shuffle_buffer=buffer)
    shard, row = order.locate(np.arange(3 * total))
    expected = [at for epoch in range(3) for at in slow_epoch(per_shard, 11, epoch, segments, buffer)]
    assert list(zip(shard.tolist(), row.tolist(), strict=True)) == expected


@pytest.mark.parametrize("total", [1, 63, 64, 65, 1000, 100003])
def test_every_epoch_is_a_bijection(total: int) -> None:
    per_shard = sizes(total, 999)
    order = GlobalOrder(per_shard, seed=0)
    starts = np.cumsum(per_shard) - per_shard
    epochs = []
    for epoch in range(2):
        shard, row = order.locate(np.arange(epoch * total, (epoch + 1) * total))
        epochs.append(starts[shard] + row)
        np.testing.assert_array_equal(np.sort(epochs[-1]), np.arange(total))
    assert total < 1000 or (epochs[0] != epochs[1]).any()


def test_a_tiny_case_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 2, 3 and 2 samples, 2 segments, buffers of 2; every permutation reversed.

    Shards reversed: c0 c1 | b0 b1 b2 | a0 a1. 7 samples in 2 segments: c0 c1 b0 b1 and b2 a0 a1.
    Buffers of 2 reversed: c1 c0 b1 b0 and a0 b2 a1. Dealt out in turn: c1 a0 c0 b2 b1 a1 b0.
    """
    monkeypatch.setattr(
        "data_shards.order.global_order.permutation", lambda count, *words: np.arange(count)[::-1]
    )
    order = GlobalOrder(np.array([2, 3, 2]), seed=0, interleave=2, shuffle_buffer=2)
    shard, row = order.locate(np.arange(7))
    names = ["abc"[s] + str(r) for s, r in zip(shard, row, strict=True)]
    assert names == ["c1", "a0", "c0", "b2", "b1", "a1", "b0"]


def test_any_selection_in_any_order_is_located_alike() -> None:
    order = GlobalOrder(sizes(1000, 90), seed=5, interleave=8, shuffle_buffer=16)
    whole = np.stack(order.locate(np.arange(4000)))
    chosen = np.random.default_rng(0).integers(0, 4000, 500)
    np.testing.assert_array_equal(
        np.stack(GlobalOrder(sizes(1000, 90), 5, 8, 16).locate(chosen)), whole[:, chosen]
    )
    assert order.locate(np.arange(0))[0].shape == (0,)


def test_global_batch_is_sorted_by_segment_in_pairs_and_stable() -> None:
    order = GlobalOrder(np.array([10]), seed=0, interleave=4)
    # Pairs 6 7, 8 9, 10 11, 12 13 of epochs of 10: their firsts are q = 6 8 0 2, segments 2 0 0 2.
    assert order.global_batch(6, 7).tolist() == [8, 9, 10, 11, 6, 7, 12]


@pytest.mark.parametrize(("samples", "size"), [(103, 48), (1000, 64), (4097, 320), (327, 96)])
def test_no_pair_is_torn_by_slices_of_even_size(samples: int, size: int) -> None:
    """Mixup and cutmix join the positions 2k and 2k + 1: they stay side by side, also across epochs."""
    order = GlobalOrder(np.array([samples]), seed=1)
    for start in range(0, 2 * samples, size):
        pairs = order.global_batch(start, size).reshape(-1, 2)
        assert (pairs[:, 0] % 2 == 0).all()
        assert (pairs[:, 1] == pairs[:, 0] + 1).all()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_rank_slices_together_are_the_global_batch(ranks: int) -> None:
    order = GlobalOrder(sizes(1000, 90), seed=5)
    batch = order.global_batch(960, 96)
    share = 96 // ranks
    slices = [batch[r * share : (r + 1) * share] for r in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(slices), batch)
    np.testing.assert_array_equal(np.sort(batch), np.arange(960, 1056))


def test_resume_in_22k_scale_is_cheap() -> None:
    per_shard = np.full(14_200, 1000)
    began = time.process_time()
    order = GlobalOrder(per_shard, seed=0)
    order.locate(order.global_batch(9_000_000, 4096))
    assert time.process_time() - began < 0.5  # 28 ms measured; the bound leaves room for a slow machine


def test_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match=r"interleave \(0\)"):
        GlobalOrder(np.array([1]), seed=0, interleave=0)
    with pytest.raises(DataError, match=r"samples \(0\)"):
        GlobalOrder(np.array([0]), seed=0)


def test_replacements_go_round_the_buffer_and_then_the_epoch() -> None:
    """11 samples, 2 segments (6 and 5), buffers of 4: position 11 + 4 is rank 2 of segment 0 in epoch 1.

    Its buffer is the ranks 0 ... 3, so next come rank 3, 0, 1: positions 11 + 6, 11 + 0, 11 + 2. Then all of
    the epoch from 11 + 5 on and around.
    """
    order = GlobalOrder(np.array([11]), seed=0, interleave=2, shuffle_buffer=4)
    found = list(order.replacements(15))
    assert found[:3] == [17, 11, 13]
    assert found[3:] == [16, 17, 18, 19, 20, 21, 11, 12, 13, 14]
    # Rank 4 of segment 1 is alone in its buffer: straight to the epoch.
    assert list(order.replacements(9)) == [10, 0, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("segments", "buffer"), [(64, 4096), (4, 9), (3, 1)])
def test_buffer_shards_are_those_of_its_samples(segments: int, buffer: int) -> None:
    order = GlobalOrder(sizes(1000, 37), seed=2, interleave=segments, shuffle_buffer=buffer)
    for epoch in range(2):
        positions = np.arange(1000) + 1000 * epoch
        shard, _ = order.locate(positions)
        for segment in (0, segments - 1):
            mine = order.segment_of(positions) == segment
            for number in range(-(-mine.sum() // buffer)):
                truth = shard[mine][number * buffer : (number + 1) * buffer]
                assert set(order.buffer_shards(epoch, segment, number).tolist()) == set(truth.tolist())
                first = int(positions[mine][number * buffer])
                assert order.buffer_of(first) == (epoch, number)
            assert order.buffer_shards(epoch, segment, number + 1).size == 0
