"""The cache: within its cap, never a corrupt or left-over file, the furthest next use evicted first."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.order.global_order import GlobalOrder
from data_shards.storage.base import LocalStorage
from data_shards.storage.cache import FetchResult, ShardCache
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.options import ReadOptions
from data_shards.stream.shard_prefetcher import lookahead
from tests.data_shards.streams import eval_stream, seen, tiny_stream
from tests.data_shards.tiny_splits import write_split

SHARDS, BODY = 12, 400_000  # 12 shards of about 0.4 MB
CAP = 2_200_000  # room for five of them


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("big") / "train"
    write_split(out, [random.Random(i).randbytes(BODY) for i in range(SHARDS)], [0] * SHARDS, 1)
    return out


def make(split: Path, root: Path, cap: int = CAP, deadline_s: float = 30) -> ShardCache:
    retries = Retries(deadline_s, Telemetry())
    return ShardCache(root, cap, LocalStorage(split), Manifest.load(split), retries=retries)


def there(cache: ShardCache) -> list[int]:
    return sorted(int(path.stem) for path in cache.home.glob("*.tar"))


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_fetches_verifies_and_keeps_the_cap(big: Path, tmp_path: Path) -> None:
    cache = make(big, tmp_path)
    assert cache.open(3) is None
    for shard in range(SHARDS):
        assert cache.fetch(shard) is FetchResult.HERE
        assert size(tmp_path) <= CAP
        assert (cache.home / f"{shard:06d}.tar").read_bytes() == (big / f"{shard:06d}.tar").read_bytes()
    assert there(cache) == [7, 8, 9, 10, 11]  # nobody announced anything: the oldest went first
    file = cache.open(9)
    assert file
    assert file.member(512, BODY)[1] == random.Random(9).randbytes(BODY)


def test_the_furthest_next_use_of_any_process_goes_first(big: Path, tmp_path: Path) -> None:
    one, other = make(big, tmp_path), make(big, tmp_path)
    for shard in range(5):
        one.fetch(shard)
    one.announce([0, 9, 8, 4, 1])
    other.announce([3, 7, 2, 9])
    # Next uses: 3 and 0 at once, 2 in two, 4 in three, 1 in four. 9 is needed in one.
    assert one.fetch(9, need=1) is FetchResult.HERE
    assert there(one) == [0, 2, 3, 4, 9]
    assert one.fetch(8, need=2) is FetchResult.HERE
    assert there(one) == [0, 2, 3, 8, 9]
    # 7 is needed in one; 2 in two; of those read sooner none may go, and none that is open.
    held = one.open(2)
    assert held
    assert one.open(8)  # closed again at once
    one.announce([0, 9, 8])
    assert other.fetch(7, need=1) is FetchResult.HERE
    assert there(one) == [0, 2, 3, 7, 9]
    assert other.fetch(6, need=2) is FetchResult.NO_SPACE
    assert list(tmp_path.rglob(".*.tmp")) == []
    one.close()  # its claims go with it; what it has open stays
    assert other.fetch(6, need=2) is FetchResult.HERE
    assert 2 in there(other)
    assert 3 in there(other)


def test_a_cap_or_directory_that_cannot_be_is_refused(big: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cache_bytes \(1000\) must be at least \d+, one shard"):
        make(big, tmp_path, cap=1000)
    with pytest.raises(DataError, match="a variable in it is not set"):
        make(big, Path("$NO_SUCH_VARIABLE/shards"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be used .*node-local"):
        make(big, tmp_path / "file")


def test_the_directory_may_be_a_variable(big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert make(big, Path("$SLURM_TMPDIR/shards")).home.parent == tmp_path / "shards"


def test_a_pipe_waits_for_room_and_then_says_why(big: Path, tmp_path: Path) -> None:
    cache = make(big, tmp_path, deadline_s=0.5)
    held = [cache.require(shard, lambda: None) for shard in range(5)]
    with pytest.raises(
        DataError, match=r"000007.tar: not cached within 0 s: everything in the cache is needed"
    ):
        cache.require(7, lambda: None)
    assert cache.require(7, held.clear)
    assert size(tmp_path) <= CAP


WORKER = """
import sys, random, time
from pathlib import Path
from data_shards.storage.cache import ShardCache
from data_shards.format.index import Manifest
from data_shards.storage.retry import Retries
from data_shards.storage.base import LocalStorage
from data_shards.storage.telemetry import Telemetry

class Slow(LocalStorage):
    def chunks(self, name):
        body = b"".join(super().chunks(name))
        for start in range(0, len(body), 40_000):
            yield body[start : start + 40_000]
            time.sleep(0.001)

split, root, cap, seed, turns = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
cache = ShardCache(root, cap, Slow(split), Manifest.load(split), retries=Retries(30, Telemetry()))
rng = random.Random(seed)
print("ready", flush=True)
for turn in range(turns):
    order = rng.sample(range(12), 12)
    cache.announce(order)
    for place, shard in enumerate(order[:6]):
        cache.fetch(shard, place)
        file = cache.open(shard)
cache.close()
"""


def worker(split: Path, root: Path, seed: int, turns: int) -> "subprocess.Popen[bytes]":
    args = [sys.executable, "-c", WORKER, *map(str, (split, root, CAP, seed, turns))]
    return subprocess.Popen(args, stdout=subprocess.PIPE)


def assert_sound(root: Path, split: Path) -> None:
    """Every file that has a shard's name has its bytes."""
    digests = {shard.name: shard.sha256 for shard in Manifest.load(split).shards}
    for path in root.glob("*/[!.]*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digests[path.name]


def test_several_processes_share_it_within_the_cap(big: Path, tmp_path: Path) -> None:
    workers = [worker(big, tmp_path, seed, 6) for seed in range(3)]
    most = 0
    while any(process.poll() is None for process in workers):
        total = 0
        for path in tmp_path.rglob("*"):
            if path.is_file():
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    total = 0  # it went while we counted, so the sum is of no one moment
                    break
        most = max(most, total)
        time.sleep(0.002)
    assert [process.wait() for process in workers] == [0, 0, 0]
    assert 0 < most <= CAP + BODY  # a scan is no snapshot: one file may be counted before and after a rename
    assert size(tmp_path) <= CAP
    assert_sound(tmp_path, big)
    assert list(tmp_path.rglob(".*.tmp")) + list(tmp_path.glob(".user-*")) == []


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_leave_nothing_corrupt(big: Path, tmp_path: Path, kills: int) -> None:
    rng, left = random.Random(0), 0
    for kill in range(kills):
        workers = [worker(big, tmp_path, 2 * kill + i, 1000) for i in range(2)]
        for process in workers:
            assert process.stdout
            process.stdout.readline()
        time.sleep(rng.uniform(0.01, 0.15))
        for process in workers:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        left += len(list(tmp_path.rglob(".*.tmp")))
        assert_sound(tmp_path, big)
        assert size(tmp_path) <= CAP
        cache = make(big, tmp_path)  # the next start
        assert list(tmp_path.rglob(".*.tmp")) + list(tmp_path.glob(".user-*")) == []
        cache.close()
    assert left >= kills / 2  # the kills did hit fetches


def test_training_and_evaluation_fill_and_use_it(shards: Path, tmp_path: Path) -> None:
    read = ReadOptions(cache=tmp_path, cache_bytes=64 << 20)
    plain = seen(tiny_stream(shards), 30)
    cached = tiny_stream(shards, read=read)
    assert seen(cached, 30) == plain
    totals = cached.telemetry.totals()
    assert totals["shards_fetched"] == 6
    assert totals["cache_hits"] > totals["cache_misses"]
    options = {"batch_size": 10, "dp_rank": 0, "dp_size": 1, "image_size": 8}
    with eval_stream(shards, **options) as bare, eval_stream(shards, read=read, **options) as stream:
        for ours, theirs in zip(stream, bare, strict=True):
            assert (ours["image"] == theirs["image"]).all()
        assert stream.telemetry.totals()["cache_misses"] == 0
    assert sorted(path.name for path in tmp_path.glob("*/*")) == [f"{i:06d}.tar" for i in range(6)]


@pytest.fixture
def order() -> Iterator[GlobalOrder]:
    return GlobalOrder(np.array([30, 50, 20, 60, 40]), seed=3, interleave=4, shuffle_buffer=7)


def test_lookahead_shards_are_those_that_come(order: GlobalOrder) -> None:
    """Against the located positions of the segments, from any position on, for any `exact`."""
    for exact in (1, 16, 4096):
        for position in (0, 33, 111, 199):
            segments = np.array([1, 2])
            ahead = np.arange(position - position % 4, 400)
            mine = ahead[np.isin(order.segment_of(ahead), segments)]
            truth = list(dict.fromkeys(order.locate(mine)[0].tolist()))
            found = lookahead(order, position, segments, 100, exact)
            assert sorted(found) == sorted(truth)
            if exact == 4096:
                end = len(set(order.locate(mine[mine < 200])[0].tolist()))
                assert found[:end] == truth[:end]
            assert lookahead(order, position, segments, 2, exact) == found[:2]
