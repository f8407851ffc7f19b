"""The streams: the same samples, looking the same, whatever the ranks, threads and interruptions."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.format.index import Manifest, read_index
from data_shards.format.rng import DrawKey
from data_shards.image.decode import decode_image
from data_shards.image.geometry import EvalTransform, Geometry, TrainTransform
from data_shards.pack.sources.registry import Source
from data_shards.pack.write import pack
from data_shards.stream.batch import Batch
from data_shards.stream.reader import ShardReader
from data_shards.stream.train import TrainStream
from tests.data_shards.conftest import PER_SHARD, SAMPLES
from tests.data_shards.streams import eval_stream, train_stream
from tests.data_shards.tiny_splits import write_split

TRANSFORM = TrainTransform(image_size=12)
FIELDS = ("image", "label", "positions", "weights")


def train(shards: Path, rank: int = 0, ranks: int = 1, **options: object) -> TrainStream:
    defaults = {"seed": 1, "global_batch_size": 24, "micro_batch_size": 4, "transform": TRANSFORM}
    return train_stream(shards, dp_rank=rank, dp_size=ranks, **(defaults | options))


@dataclass(frozen=True, kw_only=True)
class Hooked(TrainTransform):
    """A transform that calls a hook with the position of every sample that is decoded."""

    hook: Callable[[int], object]

    def geometry(self, height: int, width: int, key: DrawKey) -> Geometry:
        self.hook(key.position)
        return super().geometry(height, width, key)


def take(stream: TrainStream, batches: int) -> list[Batch]:
    with stream:
        return list(islice(stream, batches))


def tensor(batch: Batch, field: str) -> torch.Tensor:
    return batch[field] if field in batch.tensors else getattr(batch, field)


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {field: torch.cat([tensor(batch, field) for batch in batches]) for field in FIELDS}


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    one_joined, other_joined = joined(one), joined(other)
    for field in FIELDS:
        assert torch.equal(one_joined[field], other_joined[field]), field


def test_a_batch_is_what_order_reader_and_decoder_give(shards: Path) -> None:
    stream = train(shards)
    batches = take(stream, 12)  # two steps of six micro-batches, 48 samples
    reader = ShardReader(shards, Manifest.load(shards))
    positions = np.concatenate([stream.order.global_batch(0, 24), stream.order.global_batch(24, 24)])
    for row, (position, shard, sample) in enumerate(
        zip(positions.tolist(), *(a.tolist() for a in stream.order.locate(positions)), strict=True)
    ):
        body, label = reader.read(shard, sample).values()
        batch, i = batches[row // 4], row % 4
        np.testing.assert_array_equal(
            batch["image"][i].numpy(), decode_image(body, TRANSFORM, DrawKey(1, position))
        )
        assert (batch["label"][i].item(), batch.positions[i].item(), batch.weights[i].item()) == (
            label,
            position,
            1,
        )
    batch = batches[0]
    assert [tensor(batch, field).dtype for field in FIELDS] == [
        torch.uint8,
        torch.int64,
        torch.int64,
        torch.float32,
    ]
    assert batch["image"].shape == (4, 3, 12, 12)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_are_one_rank(shards: Path, ranks: int) -> None:
    """Step by step, the slices in rank order are the whole batch, across an epoch's end (103 samples)."""
    alone, steps = take(train(shards), 6 * 6), 6
    slices = [take(train(shards, r, ranks), steps * 6 // ranks) for r in range(ranks)]
    per_step = 6 // ranks
    together = [
        batch
        for step in range(steps)
        for mine in slices
        for batch in mine[step * per_step : (step + 1) * per_step]
    ]
    assert_same(together, alone)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (2, 7), (5, 2)])
def test_threads_and_prefetch_do_not_show(shards: Path, threads: int, prefetch: int) -> None:
    expected = take(train(shards, threads=1, prefetch=3), 30)
    assert_same(take(train(shards, threads=threads, prefetch=prefetch), 30), expected)


def test_micro_batch_size_only_cuts(shards: Path) -> None:
    assert_same(take(train(shards, micro_batch_size=12), 10), take(train(shards, micro_batch_size=2), 60))


def test_every_epoch_has_every_sample_once(shards: Path) -> None:
    positions = joined(take(train(shards, global_batch_size=103, micro_batch_size=103), 2))
    assert sorted(positions["positions"].tolist()) == list(range(206))
    counts = torch.bincount(positions["label"])
    assert counts.tolist() == [42, 42, 42, 40, 40]  # twice 21 21 21 20 20


def test_resume_in_mid_epoch_is_the_exact_continuation(shards: Path) -> None:
    whole = take(train(shards), 48)  # eight steps, 192 samples: nearly two epochs
    with train(shards) as stream:
        list(islice(stream, 18))
        state = json.loads(json.dumps(stream.state_dict()))
    assert state["samples"] == 72  # three steps of 24, and nothing of what was prefetched
    resumed = train(shards)
    resumed.load_state_dict(state)
    assert_same(take(resumed, 30), whole[18:])


def test_resume_with_another_world_and_batch_size(shards: Path) -> None:
    """Three steps of 24 on one rank, then of 18 on three: positions 0 ... 125, each once, looking alike."""
    with train(shards) as stream:
        first = list(islice(stream, 18))
        state = stream.state_dict()
    then = []
    for rank in range(3):
        resumed = train(shards, rank, 3, global_batch_size=18, micro_batch_size=6)
        resumed.load_state_dict(state)
        then += take(resumed, 3)
        assert resumed.state_dict() == state | {"samples": 126}
    got, expected = (
        joined(first + then),
        joined(take(train(shards, global_batch_size=126, micro_batch_size=126), 1)),
    )
    ours, theirs = got["positions"].argsort(), expected["positions"].argsort()
    for field in FIELDS:
        assert torch.equal(got[field][ours], expected[field][theirs]), field


def test_state_is_small_equal_on_all_ranks_and_only_between_steps(shards: Path) -> None:
    states = []
    for rank in range(2):
        with train(shards, rank, 2) as stream:
            batches = iter(stream)
            assert stream.state_dict()["samples"] == 0
            for handed in range(1, 4):  # 24 / (2 * 4) = 3 micro-batches a step
                next(batches)
                if handed < 3:
                    with pytest.raises(RuntimeError, match=f"{handed} of 3 micro-batches"):
                        stream.state_dict()
            states.append(stream.state_dict())
    assert states[0] == states[1]
    assert states[0]["samples"] == 24
    assert len(json.dumps(states[0])) < 1024


def test_iterating_again_starts_at_what_was_consumed(shards: Path) -> None:
    whole = take(train(shards), 12)
    with train(shards) as stream:
        list(islice(stream, 8))  # one step and a third of the next
        assert_same(list(islice(stream, 6)), whole[6:])


def test_another_data_set_or_seed_is_refused(source: Source, shards: Path, tmp_path: Path) -> None:
    state = train(shards).state_dict()
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=8)
    here, there = Manifest.load(tmp_path).digest[:12], Manifest.load(shards).digest[:12]
    with pytest.raises(DataError, match=rf"manifest of another data set.*{there}.*{here}"):
        train(tmp_path).load_state_dict(state)
    with pytest.raises(DataError, match="seed is 1 in the state and 2 here"):
        train(shards, seed=2).load_state_dict(state)
    with pytest.raises(
        DataError, match="lanes is 64 in the state and 8 here; window is 4096 in the state and 9 here"
    ):
        train(shards, interleave=8, shuffle_buffer=9).load_state_dict(state)
    with pytest.raises(DataError, match="version is 9, this version reads 1"):
        train(shards).load_state_dict(state | {"version": 9})
    with pytest.raises(DataError, match="samples must be a whole number"):
        train(shards).load_state_dict(state | {"samples": -1})


def test_sizes_that_do_not_divide_are_an_equation(shards: Path) -> None:
    with pytest.raises(DataError) as caught:
        train(shards, 0, 2, global_batch_size=100, micro_batch_size=16)
    equation = (
        "global_batch_size (100) must be a multiple of dp_size (2) x micro_batch_size (16) = 32; nearest: 96"
    )
    assert str(caught.value) == equation
    with pytest.raises(DataError, match=r"dp_rank \(2\) must be in 0 ... dp_size - 1 \(1\)"):
        train(shards, 2, 2)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("size", "limit"), [(10, None), (103, None), (4, 17), (50, 1)])
def test_evaluation_has_every_sample_exactly_once(
    shards: Path, ranks: int, size: int, limit: int | None
) -> None:
    count = limit or SAMPLES
    reader = ShardReader(shards, Manifest.load(shards))
    seen = {}
    for rank in range(ranks):
        options = {"batch_size": size, "image_size": 8, "limit": limit}
        with eval_stream(shards, dp_rank=rank, dp_size=ranks, **options) as stream:
            batches = list(stream)
        assert len(batches) == len(stream) == -(-count // (size * ranks))
        assert stream.num_samples == count
        got = joined(batches)
        assert got["image"].shape[0] == len(batches) * size
        assert torch.equal(got["weights"], (got["positions"] >= 0).float())
        assert not got["image"][got["weights"] == 0].any()
        for i in torch.nonzero(got["weights"])[:, 0].tolist():
            position = got["positions"][i].item()
            assert position not in seen
            # batch b of all ranks starts at b * size * ranks, this rank's slice at rank * size in it
            assert position == (i // size * ranks + rank) * size + i % size
            seen[position] = got["image"][i], got["label"][i].item()
    assert sorted(seen) == list(range(count))
    for position in (0, count // 2, count - 1):
        body, label = reader.read(*divmod(position, PER_SHARD)).values()
        np.testing.assert_array_equal(
            seen[position][0].numpy(), decode_image(body, EvalTransform(image_size=8))
        )
        assert seen[position][1] == label


def test_evaluation_starts_over(shards: Path) -> None:
    with eval_stream(shards, batch_size=40) as stream:
        next(iter(stream))
        assert_same(list(stream), list(stream))
        assert stream.num_classes == len(stream.classes) == 5


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("data-shards")]


def test_no_thread_is_left(shards: Path) -> None:
    stream = train(shards, threads=3, prefetch=6)
    batches = iter(stream)
    next(batches)
    assert loader_threads()
    stream.close()
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        next(batches)
    with eval_stream(shards, batch_size=10) as evaluation:
        next(iter(evaluation))
    assert loader_threads() == []
    batches = iter(train(shards))
    next(batches)
    batches.close()  # the generator alone
    assert loader_threads() == []


def test_open_files_are_closed(shards: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    stream = train(shards)
    next(iter(stream))
    assert len(os.listdir("/proc/self/fd")) > before
    stream.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_waiting_is_measured(shards: Path) -> None:
    go = threading.Event()
    gated = Hooked(image_size=12, hook=lambda position: go.wait(60))
    stream = train(shards, threads=1, prefetch=1, transform=gated)
    threading.Timer(1.0, go.set).start()  # a busy machine may come to wait late
    with stream:
        batches = iter(stream)
        next(batches)
        waited_s, stream.wait_s = stream.wait_s, 0.0
        assert 0.1 < waited_s < 60
        next(batches)
        assert stream.wait_s < waited_s


def test_at_most_prefetch_batches_are_decoded_ahead(shards: Path) -> None:
    loaded: list[int] = []
    with train(shards, prefetch=3, transform=Hooked(image_size=12, hook=loaded.append)) as stream:
        next(iter(stream))
        deadline = time.monotonic() + 10
        while len(loaded) < 16 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # let them do all they may
        assert len(loaded) == 4 * 4  # the batch handed over and three more, four samples each


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_a_flipped_bit_names_shard_key_and_offset(copy: Path) -> None:
    offset = int(read_index(copy / "000003.idx")["image"]["offset"][4])
    body = bytearray((copy / "000003.tar").read_bytes())
    body[offset + 50] ^= 1
    (copy / "000003.tar").write_bytes(body)
    message = (
        rf"000003.tar: sample 00000064 at byte {offset} .* fails its checksum; see `swin-moe shards verify"
    )
    with pytest.raises(DataError, match=message):
        take(train(copy), 36)
    assert loader_threads() == []


def test_truncated_missing_and_exchanged_files_are_named(copy: Path) -> None:
    size = (copy / "000003.tar").stat().st_size
    os.truncate(copy / "000003.tar", size - 1)
    with pytest.raises(DataError, match=rf"000003.tar: expected {size} bytes, found {size - 1}"):
        take(train(copy), 36)
    (copy / "000003.tar").unlink()
    with pytest.raises(DataError, match=r"000003.tar: No such file or directory"):
        take(train(copy), 36)
    shutil.copy(copy / "000002.idx", copy / "000003.idx")
    with pytest.raises(DataError, match=r"000003.idx: is not the index in the manifest"):
        take(train(copy), 36)


def test_an_undecodable_sample_is_named(tmp_path: Path) -> None:
    write_split(tmp_path / "val", [b"not an image"], [0], 1)
    with (
        eval_stream(tmp_path / "val", batch_size=1) as stream,
        pytest.raises(
            DataError, match=r"000000.tar: sample 00000000 cannot be used: undecodable image of 12"
        ),
    ):
        list(stream)
