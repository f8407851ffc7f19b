"""300 injected faults: each detected, named and handled as promised, healthy samples unchanged.

The default tests inject 67 of them, the slow ones the others.
"""

import json
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from data_shards.errors import DataError
from data_shards.format.index import read_index
from data_shards.format.tar import BLOCK
from data_shards.stream.options import ReadOptions
from tests.data_shards.conftest import PER_SHARD, SAMPLES
from tests.data_shards.streams import Seen, expected, seen, tiny_stream
from tests.data_shards.tiny_splits import FaultyStorage, bodies_of, failing, slow, write_split

CAP = 64 << 20


class Place:
    """One fresh copy of the split, and what the run of it left."""

    def __init__(self, shards: Path, other: Path, home: Path, seed: int) -> None:
        self.random, self.other = Random(seed), other
        self.dir = Path(shutil.copytree(shards, home / "split"))
        self.quarantine, self.cache = home / "quarantine.jsonl", home / "cache"
        self.number = self.random.randrange(SAMPLES)  # the sample that suffers
        self.shard, self.row = divmod(self.number, PER_SHARD)
        self.name = f"{self.shard:06d}.tar"
        self.record = read_index(self.dir / f"{self.shard:06d}.idx")[self.row]["image"].item()
        self.read = ReadOptions(deadline_s=30, fetch_threads=self.random.randrange(3))
        self.storage: FaultyStorage | Path = self.dir

    def hook(self, hook: Callable[[], None]) -> None:
        self.storage = FaultyStorage(self.dir, self.name, hook)

    def cached(self) -> ReadOptions:
        return ReadOptions(deadline_s=30, cache=self.cache, cache_bytes=CAP)

    def copy_in_cache(self) -> Path:
        """Bring every shard into the cache; the copy of the shard that will suffer."""
        stream = tiny_stream(self.dir, read=self.cached())
        with stream:
            assert stream.cache
            for shard in range(len(stream.manifest.shards)):
                stream.cache.fetch(shard)
        return self.cache / stream.manifest.digest[:16] / self.name

    def run(self, read: ReadOptions | None = None) -> Seen:
        self.stream = tiny_stream(self.storage, quarantine=self.quarantine, read=read or self.read)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = seen(self.stream)
        self.totals = self.stream.telemetry.totals()
        return found

    def lines(self) -> list[dict[str, object]]:
        if not self.quarantine.exists():
            return []
        return [json.loads(line) for line in self.quarantine.read_text().splitlines()]

    def flip(self, path: Path, offset: int) -> None:
        body = bytearray(path.read_bytes())
        body[offset] ^= 1 << self.random.randrange(8)
        path.write_bytes(body)

    def fatal(self, message: str, read: ReadOptions | None = None) -> None:
        with pytest.raises(DataError, match=message):
            self.run(read)

    def whole(self, bad: set[int] = frozenset()) -> None:
        """The run gives what the definition says; healthy samples stand where they stood."""
        bodies, labels = self.truth
        found = self.run()
        assert found == expected(self.stream, bodies, labels, bad)


def body_flipped(place: Place) -> None:
    offset, size, *_ = place.record
    place.flip(place.dir / place.name, offset + place.random.randrange(size))
    place.whole(bad={place.number})
    lines = place.lines()  # a thread may find it at an earlier position after another has: one more line
    assert {(line["shard"], line["row"], line["offset"]) for line in lines} == {
        (place.name, place.row, offset)
    }
    for line in lines:
        assert line["key"] == f"{place.number:08d}" or "key" in line
        assert "fails its checksum" in str(line["reason"])
    assert (place.totals["bad_samples"], place.totals["replaced"] >= 1) == (1, True)


def cached_body_flipped(place: Place) -> None:
    offset, size, *_ = place.record
    copy = place.copy_in_cache()
    place.flip(copy, offset + place.random.randrange(size))
    place.read = place.cached()
    place.whole()
    assert place.totals["refetches"] >= 1
    assert place.lines() == []
    assert not copy.exists() or copy.read_bytes() == (place.dir / place.name).read_bytes()


def header_damaged(place: Place) -> None:
    place.flip(place.dir / place.name, place.record[0] - BLOCK + place.random.randrange(BLOCK))
    place.whole()
    (line,) = place.lines()
    assert line["shard"] == place.name
    assert "damaged tar header" in str(line["notice"])
    assert place.totals["damaged_headers"] >= 1


def header_damaged_and_cached(place: Place) -> None:
    place.flip(place.dir / place.name, place.record[0] - BLOCK + place.random.randrange(BLOCK))
    place.read = place.cached()
    place.whole()
    notices = [str(line["notice"]) for line in place.lines() if line["shard"] == place.name]
    assert any("damaged tar header" in notice for notice in notices)
    copies = list(place.cache.glob("*/*.damaged"))
    assert [copy.name for copy in copies] in ([], [f"{place.name}.damaged"])
    assert bool(copies) == any("SHA-256 differs" in notice for notice in notices)


def source_truncated(place: Place) -> None:
    path = place.dir / place.name
    size = path.stat().st_size
    cut = place.random.randrange(size)
    path.write_bytes(path.read_bytes()[:cut])
    read = place.random.choice([None, ReadOptions(deadline_s=0.3, cache=place.cache, cache_bytes=CAP)])
    place.fatal(f"{place.name}: expected {size} bytes, found {cut}", read)


def cached_copy_truncated(place: Place) -> None:
    copy = place.copy_in_cache()
    copy.write_bytes(copy.read_bytes()[: place.random.randrange(copy.stat().st_size)])
    place.read = place.cached()
    place.whole()
    assert place.lines() == []


def shard_missing(place: Place) -> None:
    (place.dir / place.name).unlink()
    place.fatal(f"{place.name}: No such file or directory")


def reads_failing_for_a_while(place: Place) -> None:
    times = place.random.randint(1, 3)
    place.hook(failing(times))
    cached = place.random.random() < 0.5
    place.read = place.cached() if cached else place.read
    place.whole()
    assert cached or place.totals["retries"] == times  # a prefetch may be given up when the stream ends


def reads_failing_for_good(place: Place) -> None:
    place.hook(failing(10**9))
    place.fatal(rf"{place.name}: Input/output error; given up after \d+ tries", ReadOptions(deadline_s=1.0))


def reads_slow(place: Place) -> None:
    place.hook(slow(0.01))
    place.whole()
    assert place.stream.wait_s > 0.01


def reads_hanging(place: Place) -> None:
    done = threading.Event()
    place.hook(lambda: done.wait(60) and None)
    place.fatal(f"no batch for 5 s while reading .*{place.name}", ReadOptions(deadline_s=0.3))
    done.set()


def cache_disk_full(place: Place) -> None:
    place.read = place.cached()
    with pytest.MonkeyPatch.context() as patch:

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(
            f"data_shards.storage.cache.os.{place.random.choice(['pwrite', 'fsync', 'rename'])}", full
        )
        place.whole()
    assert place.lines() == []
    assert list(place.cache.glob("*/*")) + list(place.cache.glob("*/.*.tmp")) == []


def shard_swapped(place: Place) -> None:
    """Another set's shard: of another size, of the same size, or with its index."""
    ours, theirs = place.dir / place.name, (place.other / place.name).read_bytes()
    size, kind = ours.stat().st_size, place.random.randrange(3)
    if kind == 0:
        ours.write_bytes(theirs)
        assert len(theirs) != size
        place.fatal(f"{place.name}: expected {size} bytes, found {len(theirs)}")
    elif (
        kind == 1 and place.shard < SAMPLES // PER_SHARD
    ):  # the last shard has too few samples to be too many
        ours.write_bytes(theirs[:size].ljust(size, b"\0"))
        place.fatal(rf"1\d bad samples \(at most .* = 10\), most in {place.name} \(1\d\)")
    else:
        shutil.copy(place.other / f"{ours.stem}.idx", place.dir)
        place.fatal(f"{ours.stem}.idx: is not the index in the manifest")


def samples_undecodable(place: Place) -> None:
    """Bodies that were broken before they were packed: their checksums are right."""
    bodies, labels = place.truth
    bad = {place.number, place.random.randrange(SAMPLES)}
    broken = [body[:200] if i in bad else body for i, body in enumerate(bodies)]
    shutil.rmtree(place.dir)
    write_split(place.dir, broken, labels, PER_SHARD)
    place.whole(bad=bad)
    assert {line["key"] for line in place.lines()} == {f"{i:08d}" for i in bad}
    assert all("cannot be used" in str(line["reason"]) for line in place.lines())


FAULTS = {
    body_flipped: 45,
    cached_body_flipped: 25,
    header_damaged: 25,
    header_damaged_and_cached: 15,
    source_truncated: 30,
    cached_copy_truncated: 20,
    shard_missing: 25,
    reads_failing_for_a_while: 25,
    reads_failing_for_good: 10,
    reads_slow: 10,
    reads_hanging: 5,
    cache_disk_full: 20,
    shard_swapped: 25,
    samples_undecodable: 20,
}
# at once: every way to swap a shard, every call that fails on a full disk, reads with and without a cache
QUICK = range(3, 8)


@pytest.fixture(scope="module")
def truth(shards: Path) -> tuple[list[bytes], list[int]]:
    return bodies_of(shards)


@pytest.fixture(scope="module")
def other(truth: tuple[list[bytes], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set of the same shape: the same samples the other way round."""
    out = tmp_path_factory.mktemp("other") / "train"
    bodies, labels = truth
    write_split(out, [b"\xff\xd8" + bytes(600) + body for body in bodies[::-1]], labels[::-1], PER_SHARD)
    return out


@pytest.mark.parametrize(
    "are_quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["some", "others"]
)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_detected_named_and_handled(
    fault: Callable[[Place], None],
    are_quick: bool,
    shards: Path,
    other: Path,
    truth: tuple[list[bytes], list[int]],
    tmp_path: Path,
) -> None:
    before = set(threading.enumerate())
    for seed in (seed for seed in range(FAULTS[fault]) if (seed in QUICK) == are_quick):
        home = tmp_path / str(seed)
        place = Place(shards, other, home, seed)
        place.truth = truth
        fault(place)
        shutil.rmtree(home)
    left = [t for t in set(threading.enumerate()) - before if fault is not reads_hanging]
    assert left == []


def test_they_are_300() -> None:
    assert sum(FAULTS.values()) == 300
