"""Evaluation in a seeded order, and of chosen samples alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.stream.reader import ShardReader
from tests.data_shards.conftest import PER_SHARD, SAMPLES
from tests.data_shards.streams import eval_stream

GROUP = 4


def groups(
    shards: Path, ranks: int, size: int, **options: object
) -> dict[int, tuple[list[int], list[float]]]:
    """The positions and weights of every routing group that counts, by its number, of all ranks."""
    found = {}
    for rank in range(ranks):
        with eval_stream(shards, batch_size=size, dp_rank=rank, dp_size=ranks, **options) as stream:
            for b, batch in enumerate(stream):
                first = (b * ranks + rank) * size
                for at in range(0, size, GROUP):
                    cut = slice(at, at + GROUP)
                    if batch.weights[cut].any():
                        values = batch.positions[cut].tolist(), batch.weights[cut].tolist()
                        found[(first + at) // GROUP] = values
    return found


@pytest.mark.parametrize(("ranks", "size"), [(1, 4), (2, 8), (3, 12), (4, 40)])
def test_the_groups_are_of_no_layout(shards: Path, ranks: int, size: int) -> None:
    wanted = groups(shards, 1, 20, shuffle_seed=3)
    assert groups(shards, ranks, size, shuffle_seed=3) == wanted
    assert sorted(wanted) == list(range(-(-SAMPLES // GROUP)))
    counted = [
        p for positions, weights in wanted.values() for p, w in zip(positions, weights, strict=True) if w
    ]
    assert sorted(counted) == list(range(SAMPLES))
    assert counted != sorted(counted)
    assert groups(shards, 1, 20, shuffle_seed=4) != wanted


def test_the_end_is_filled_with_the_first_samples(shards: Path) -> None:
    left = SAMPLES % GROUP or GROUP
    found = groups(shards, 1, GROUP, shuffle_seed=3)
    positions, weights = found[max(found)]
    assert weights == [1.0] * left + [0.0] * (GROUP - left)
    assert positions[left:] == found[0][0][: GROUP - left]


def test_chosen_samples_in_their_order(shards: Path) -> None:
    reader, chosen = ShardReader(shards, Manifest.load(shards)), np.array([SAMPLES - 1, 3, 40, 0])
    with eval_stream(shards, batch_size=3, samples=chosen) as stream:
        first, last = stream
        assert torch.cat([first.positions, last.positions]).tolist() == [*chosen, -1, -1]
        wanted = [reader.read(*divmod(int(i), PER_SHARD))["label"] for i in chosen]
        assert torch.cat([first["label"], last["label"]]).tolist()[:4] == wanted
        assert stream.labels()[chosen].tolist() == wanted
        assert len(stream.labels()) == SAMPLES


def test_nothing_chosen(shards: Path) -> None:
    with pytest.raises(DataError, match="samples is empty"):
        eval_stream(shards, batch_size=3, samples=np.array([], dtype=np.int64))
