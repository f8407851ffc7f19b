"""A pack shared by tasks and cut by size: the same bytes as one process writes, whatever befalls it."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.index import MANIFEST_NAME, Manifest, ShardEntry
from data_shards.format.rng import Purpose, permutation
from data_shards.pack.plan import PLAN_NAME
from data_shards.pack.progress import PartFile, read_records
from data_shards.pack.shard import ShardRecord
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.registry import Source, synthetic
from data_shards.pack.write import merge, pack, pack_task
from tests.data_shards.conftest import PER_SHARD, SAMPLES
from tests.data_shards.image_folders import contents, make_folder

OPTIONS = {"samples_per_shard": PER_SHARD, "seed": 7}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])  # of six shards: some of nine tasks have none
def test_any_number_of_tasks_writes_the_same_bytes(
    source: Source, shards: Path, tmp_path: Path, count: int
) -> None:
    tasks = np.random.default_rng(count).permutation(count).tolist()
    done = [pack_task(source, "train", tmp_path, (i, count), **OPTIONS) for i in tasks]
    needed = max(place for place, i in enumerate(tasks) if i < 6)  # the place of the last task with a shard
    assert [manifest is not None for manifest in done] == [place >= needed for place in range(count)]
    assert contents(tmp_path) == contents(shards)


def test_a_task_with_workers_goes_on_where_another_split_left_it(
    source: Source, shards: Path, tmp_path: Path
) -> None:
    assert pack_task(source, "train", tmp_path, (1, 3), **OPTIONS) is None  # shards 1 and 4
    kept = (tmp_path / "000004.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"4 shards are not written yet \(0, 2, 3, 5\)"):
        merge(tmp_path)
    assert pack_task(source, "train", tmp_path, (1, 2), workers=2, **OPTIONS) is None  # shards 1, 3 and 5
    assert pack_task(source, "train", tmp_path, (0, 2), **OPTIONS) is not None
    assert (tmp_path / "000004.tar").stat().st_mtime_ns == kept
    assert contents(tmp_path) == contents(shards)
    assert merge(tmp_path) == Manifest.load(tmp_path)


def test_merge_writes_the_manifest_that_a_killed_task_did_not(
    source: Source, shards: Path, tmp_path: Path
) -> None:
    def stop_after_the_last(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_task(source, "train", tmp_path, (0, 1), progress=stop_after_the_last, **OPTIONS)
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert merge(tmp_path).samples == SAMPLES
    assert contents(tmp_path) == contents(shards)


def test_another_plan_is_refused_by_every_task(source: Source, tmp_path: Path) -> None:
    pack_task(source, "train", tmp_path, (0, 3), **OPTIONS)
    with pytest.raises(DataError, match="seed: '7' there, '8' requested"):
        pack_task(source, "train", tmp_path, (1, 3), samples_per_shard=PER_SHARD, seed=8)
    with pytest.raises(DataError, match=r"task \(3/3\) must be i/n .* --array=0-2"):
        pack_task(source, "train", tmp_path, (3, 3), **OPTIONS)


def run_task(out: Path, task: tuple[int, int], workers: int, pause_s: float) -> None:
    source = synthetic(SAMPLES, 11, num_classes=5, image_size=16, seed=3)
    pause: Callable[[int, int], None] = lambda done, total: time.sleep(pause_s)  # noqa: E731
    pack_task(source, "train", out, task, workers=workers, progress=pause, **OPTIONS)


def start(*args: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=run_task, args=args)
    process.start()
    return process


def test_tasks_at_the_same_time(shards: Path, tmp_path: Path) -> None:
    for process in [start(tmp_path, (i, 3), 1, 0.0) for i in range(3)]:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path) == contents(shards)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_task_leaves_nothing_and_goes_on(
    source: Source, shards: Path, tmp_path: Path, workers: int
) -> None:
    victim = start(tmp_path, (0, 1), workers, 0.3)
    while not read_records(tmp_path):
        time.sleep(0.01)
    family = children_of(victim.pid)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    deadline = time.time() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.time() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / MANIFEST_NAME).exists()
    (tmp_path / ".000005.tar.there.1.tmp").write_bytes(b"half")
    with open(next(tmp_path.glob("part-*")), "a") as part:
        part.write('{"shard": 5, "entry": {"na')  # killed in the middle of a line
    pack(source, "train", tmp_path, **OPTIONS)
    assert contents(tmp_path) == contents(shards)


def test_a_task_sweeps_its_own_temporaries_only(source: Source, tmp_path: Path) -> None:
    for name in (".000000.tar.a.1.tmp", ".000001.tar.b.1.tmp", ".part-00001-of-00002.jsonl.b.1.tmp"):
        (tmp_path / name).write_bytes(b"half")
    pack_task(source, "train", tmp_path, (0, 2), **OPTIONS)
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [
        ".000001.tar.b.1.tmp",
        ".part-00001-of-00002.jsonl.b.1.tmp",
    ]
    pack_task(source, "train", tmp_path, (1, 2), **OPTIONS)
    assert list(tmp_path.glob(".*.tmp")) == []


def test_tasks_that_disagree_are_refused(source: Source, tmp_path: Path) -> None:
    pack_task(source, "train", tmp_path, (0, 2), **OPTIONS)
    entry = ShardEntry(name="000002.tar", bytes=1, samples=20, sha256="x", index_sha256="y")
    PartFile(tmp_path, (0, 3), [ShardRecord(shard=2, entry=entry)])
    with pytest.raises(DataError, match="tasks disagree about shard 2"):
        merge(tmp_path)


def greedy(sizes: list[int], limit: int) -> list[int]:
    """Where shards start: 512 + the image in blocks + 512 + 512 a sample, 1024 at the end of a tar."""
    starts, room = [], 0
    for rank, size in enumerate(sizes):
        cost = 1536 + -(-size // 512) * 512
        if not starts or cost > room:
            starts, room = [*starts, rank], limit - 1024
        room -= cost
    return [*starts, len(sizes)]


@pytest.mark.parametrize("limit", [4096, 20_000, 50_000, 10**7])
def test_shards_by_bytes_stay_within_them_and_are_full(tmp_path: Path, limit: int) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 60}))
    samples = source.splits["train"]
    ranks = permutation(60, Purpose.PACK, 0)
    starts = greedy([len(samples[i]["image"]) for i in ranks.tolist()], limit)
    manifest = pack(source, "train", tmp_path / "a", bytes_per_shard=limit)
    assert manifest.samples_per_shard.tolist() == np.diff(starts).tolist()
    assert all(entry.bytes <= limit or entry.samples == 1 for entry in manifest.shards)
    for task in (1, 0, 2):
        pack_task(source, "train", tmp_path / "b", (task, 3), bytes_per_shard=limit)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_plan_by_bytes_is_not_decided_again(tmp_path: Path) -> None:
    """A file that grows while tasks run is packed as it is, and where shards start does not move."""
    source = image_folder(make_folder(tmp_path / "in", {"train": 60}))
    pack_task(source, "train", tmp_path / "out", (0, 2), bytes_per_shard=20_000)
    planned = (tmp_path / "out" / PLAN_NAME).read_bytes()
    path = tmp_path / "in" / "train" / source.splits["train"].describe(0)
    path.write_bytes(path.read_bytes() + bytes(30_000))
    pack_task(source, "train", tmp_path / "out", (2, 4), bytes_per_shard=20_000)
    assert (tmp_path / "out" / PLAN_NAME).read_bytes() == planned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_shard": 5, "bytes_per_shard": 5000}, "exclude each other"),
        ({"bytes_per_shard": 100}, r"bytes_per_shard \(100\) must be at least 4096"),
        ({"samples_per_shard": 0}, r"samples_per_shard \(0\) must be at least 1"),
        ({"max_bad": 2.0}, r"max_bad \(2.0\) must be a fraction"),
    ],
)
def test_nonsense_is_refused(
    source: Source, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pack(source, "train", tmp_path, **options)
