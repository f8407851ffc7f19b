"""Runs that change their ranks and batch sizes, and what a stream costs in memory and in time to resume."""

import json
import random
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.image.geometry import TrainTransform
from data_shards.order.global_order import GlobalOrder
from data_shards.storage.telemetry import COUNTERS
from data_shards.stream.batch import Batch
from data_shards.stream.options import ReadOptions
from tests.data_shards.streams import seen, tiny_stream
from tests.data_shards.tiny_splits import bodies_of, write_split

PHASES = ((8, 64), (3, 48), (5, 320))  # ranks, global batch


def steps_of(
    split: Path, ranks: int, batch: int, steps: int, state: object, **options: object
) -> tuple[list[Batch], dict]:
    """Every rank's micro-batches, in the order step by step and rank by rank, and the state after them."""
    per_rank, states = [], []
    for rank in range(ranks):
        micro = batch // ranks // 2 if batch // ranks % 2 == 0 else batch // ranks
        stream = tiny_stream(split, rank, ranks, global_batch_size=batch, micro_batch_size=micro, **options)
        with stream:
            if state:
                stream.load_state_dict(json.loads(json.dumps(state)))
            per_rank.append(list(islice(stream, steps * stream.grad_accum_steps)))
            states.append(stream.state_dict())
        accum = stream.grad_accum_steps
    assert all(s == states[0] for s in states)
    ordered = [b for k in range(steps) for mine in per_rank for b in mine[k * accum : (k + 1) * accum]]
    return ordered, states[0]


@pytest.mark.parametrize("seed", range(4))
def test_8_to_3_to_5_ranks_is_the_uninterrupted_stream(shards: Path, seed: int) -> None:
    """Changed after random numbers of steps, in mid-epoch: same samples, same order, looking alike."""
    rng, state, got, start = random.Random(seed), None, [], 0
    options = {"seed": seed, "interleave": 64 if seed % 2 else 4, "shuffle_buffer": 4096 if seed % 2 else 8}
    wanted_order = []
    for ranks, batch in PHASES:
        steps = rng.randint(1, 4)
        batches, state = steps_of(shards, ranks, batch, steps, state, **options)
        got += batches
        order = tiny_stream(shards, **options).order
        for _ in range(steps):
            wanted_order += order.global_batch(start, batch).tolist()
            start += batch
    assert state["samples"] == start
    positions = torch.cat([batch.positions for batch in got])
    assert positions.tolist() == wanted_order
    assert sorted(wanted_order) == list(range(start))  # nothing twice, nothing missing
    whole = seen(tiny_stream(shards, global_batch_size=start, micro_batch_size=start, **options), 1)
    for batch in got:
        for p, image, label in zip(
            batch.positions.tolist(), batch["image"], batch["label"].tolist(), strict=True
        ):
            assert (image.numpy().tobytes(), label) == whole[p]


def test_resuming_at_22k_scale_takes_milliseconds() -> None:
    per_shard = np.full(14_200, 1000)

    def plan() -> None:
        order = GlobalOrder(per_shard, seed=0)
        order.locate(order.global_batch(9_000_000, 4096))

    spent = []
    for _ in range(5):
        began = time.process_time()
        plan()
        spent.append(time.process_time() - began)
    assert min(spent) < 0.05
    tracemalloc.start()
    plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.filterwarnings("ignore:quarantined")
def test_memory_does_not_grow_over_five_epochs(shards: Path, tmp_path: Path) -> None:
    """30 x 103 samples, two of them bad, through the cache: 36 MB of images an epoch."""
    bodies, labels = bodies_of(shards)
    many = [*bodies * 30]
    many[5] = many[2000] = b"no image"
    write_split(tmp_path / "many", many, labels * 30, 103)
    read = ReadOptions(cache=tmp_path / "cache", cache_bytes=64 << 20, fetch_threads=1)
    options = {
        "interleave": 64,
        "shuffle_buffer": 4096,
        "transform": TrainTransform(image_size=64),
        "read": read,
    }
    stream = tiny_stream(tmp_path / "many", quarantine=tmp_path / "q.jsonl", **options)
    at = []
    with stream:
        for batch in islice(stream, 5 * 129):
            if batch.positions.min() // len(many) > len(at) - 1:
                at.append(rss())
    assert len(at) == 6
    assert at[5] - at[1] < 4e6  # from the first epoch's end to the fifth's


def test_telemetry_is_plain_numbers_of_a_step(shards: Path) -> None:
    stream = tiny_stream(shards, read=ReadOptions(fetch_threads=2))
    with stream:
        batches = iter(stream)
        next(batches)
        stream.telemetry.take()
        next(batches)
        next(batches)
        taken = stream.telemetry.take()
    assert set(taken) == {*COUNTERS, "seconds", "wait_s", "wait_share", "images_s"}
    assert taken["images"] == 48
    assert taken["images_s"] == pytest.approx(48 / taken["seconds"])
    assert 0 <= taken["wait_share"] <= 1
    assert stream.telemetry.totals()["images"] == 72
    assert stream.telemetry.totals()["bytes"] > 72 * 500
    assert stream.telemetry.take()["images"] == 0
    json.dumps(taken)
