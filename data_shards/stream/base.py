"""What the streams share: the manifest, the reader with its cache, quarantine, threads, telemetry."""

import json
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from data_shards.errors import DataError
from data_shards.format.index import MANIFEST_NAME, Manifest, check_shards
from data_shards.storage import storage_for
from data_shards.storage.base import LocalStorage, Storage, check_access, check_file_name
from data_shards.storage.cache import ShardCache
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.quarantine import Quarantine
from data_shards.stream.reader import SampleError, ShardReader
from data_shards.stream.shard_prefetcher import Prefetcher
from data_shards.stream.workers import Batch, BatchPlan, Fetched, Ring, prefetched


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples come from storage; nothing here changes which they are or how they look.

    `cache` is a directory on a node-local disk ($VARIABLES are expanded), `cache_bytes` the most that all the
    ranks of the node and all their data sets together put there. I/O errors are tried again for `deadline_s`
    seconds, which belongs below the collectives' time-out. `pinned` None pins where there is a GPU.
    """

    cache: str | Path | None = None
    cache_bytes: int = 0
    cache_threads: int = 2  # whole shards fetched at once, a process
    fetch_threads: int = 0  # samples read at once; 0: the decode threads read, best for a warm local disk
    deadline_s: float = 300.0
    pinned: bool | None = None

    @property
    def stall_s(self) -> float:
        """Seconds without a batch after which a file system hangs.

        At least five more than `deadline_s`: a source that fails is to be given up, with its reason, before.
        """
        return self.deadline_s + max(0.5 * self.deadline_s, 5.0)


DEFAULT_READING = Reading()


class OneIterator:
    """At most one iterator at a time, whose threads end with it."""

    _active: Generator[Batch, None, None] | None = None

    def close(self) -> None:
        """Join the threads; it may be iterated again."""
        self._stop()

    def __iter__(self) -> Iterator[Batch]:
        """A new iterator; one that was running is closed."""
        self._stop()
        self._active = self._batches()
        return self._active

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _stop(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

    def _batches(self) -> Generator[Batch, None, None]:
        raise NotImplementedError


class Stream(OneIterator):
    """The base of both streams."""

    def __init__(
        self,
        place: str | Path | Storage,
        dp_rank: int,
        dp_size: int,
        *,
        threads: int,
        prefetch: int,
        quarantine: str | Path | None,
        reading: Reading,
    ) -> None:
        if not 0 <= dp_rank < dp_size:
            raise DataError(f"dp_rank ({dp_rank}) must be in 0 ... dp_size - 1 ({dp_size - 1})")
        for option, value in {"threads": threads, "prefetch": prefetch}.items():
            if value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        for option, value in {"fetch_threads": 0, "cache_threads": 1}.items():
            if getattr(reading, option) < value:
                raise DataError(f"{option} ({getattr(reading, option)}) must be at least {value}")
        self.dp_rank, self.dp_size, self.threads, self.prefetch = dp_rank, dp_size, threads, prefetch
        self.reading, self.telemetry = reading, Telemetry()
        self.wait_s = 0.0  # seconds that next() waited for data; whoever reads it may set it back to 0
        self._retries = Retries(reading.deadline_s, self.telemetry)
        self._storage = storage_for(place, reading.deadline_s)
        self.manifest = load_manifest(self._storage, self._retries)
        self.num_samples, self.classes = self.manifest.samples, self.manifest.classes
        self.num_classes = len(self.classes)
        self.quarantine = Quarantine(quarantine, self.manifest)
        self._cache = self._make_cache() if reading.cache is not None else None
        self._reader = ShardReader(
            self._storage,
            self.manifest,
            cache=self._cache,
            retries=self._retries,
            notice=self.quarantine.notice,
        )
        self._prefetcher: Prefetcher | None = None

    def _make_cache(self) -> ShardCache:
        assert self.reading.cache is not None
        return ShardCache(
            self.reading.cache,
            self.reading.cache_bytes,
            self._storage,
            self.manifest,
            retries=self._retries,
            notice=self.quarantine.notice,
        )

    def labels(self) -> np.ndarray:
        """The label of every sample of the split, in index order: (samples,) int64; reads every index."""
        labels = np.concatenate([self._reader.labels(shard) for shard in range(len(self.manifest.shards))])
        if (highest := int(labels.max())) >= len(self.manifest.classes):
            where = self._storage.describe(MANIFEST_NAME)
            raise DataError(f"{where}: {self._unknown(highest)}; pack or index the shards again")
        return labels

    def _unknown(self, label: int) -> str:
        return f"label {label} is none of the {len(self.manifest.classes)} classes of the manifest"

    def close(self) -> None:
        """Join the threads and close the shards; the stream may be iterated again."""
        self._stop()
        self._reader.close()
        if self._cache:
            self._cache.close()

    def _run(self, plans: Iterator[BatchPlan], sides: tuple[int, int]) -> Generator[Batch, None, None]:
        pinned = torch.cuda.is_available() if self.reading.pinned is None else self.reading.pinned
        batches = prefetched(
            plans,
            self,
            ring=Ring(sides, self.prefetch + 2, pinned),
            threads=self.threads,
            fetch_threads=self.reading.fetch_threads,
            depth=self.prefetch,
            stall_s=self.reading.stall_s,
            stalled=self._stalled,
        )
        try:
            for batch, waited_s in batches:
                self.wait_s += waited_s
                self.telemetry.waited(waited_s)
                self.telemetry.add("images", int(batch.weights.sum()))
                yield batch
                del batch
        finally:
            self._end(batches)

    def _end(self, batches: Generator[tuple[Batch, float], None, None]) -> None:
        """Join every thread; what waits for a failing source is woken."""
        self._retries.stop.set()
        batches.close()
        if self._prefetcher:
            self._prefetcher.close()
            self._prefetcher = None
        self._retries.stop.clear()

    def _stalled(self) -> DataError:
        waited = f"no batch for {self.reading.stall_s:.0f} s"
        shards = ", ".join(self._reader.busy()) or "no shard"
        return DataError(f"{waited} while reading {shards}; see to that file system")

    def _announce(self, shards: list[int]) -> None:
        """Have these shards, soonest first, brought into the cache; let go of what is open."""
        if self._cache:
            self._reader.close()
            self._prefetcher = self._prefetcher or Prefetcher(self._cache, self.reading.cache_threads)
            self._prefetcher.plan(shards)

    def _cacheable(self) -> int:
        """How many shards ahead are worth announcing: twice what the cache holds."""
        sizes = [shard.bytes for shard in self.manifest.shards]
        return 1 + 2 * self.reading.cache_bytes * len(sizes) // sum(sizes)

    def fetch(self, shard: int, row: int) -> Fetched:
        """The compressed image and the label of a sample, or what is wrong with it."""
        try:
            body, label = self._reader.read(shard, row)
        except SampleError as error:
            return error
        if label >= len(self.manifest.classes):
            return self._reader.bad_sample(shard, row, self._unknown(label))
        return body, label

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> tuple[np.ndarray, int] | None:
        """The picture (3, H, W) uint8 and the label of a sample, or of what stands in for it."""
        try:
            return self._picture(fetched, position, shard, row)
        except SampleError as error:
            return self._replace(error, position)

    def _picture(self, fetched: Fetched, position: int, shard: int, row: int) -> tuple[np.ndarray, int]:
        """A sample decoded; SampleError."""
        if isinstance(fetched, DataError):
            raise fetched
        try:
            return self._decode(fetched[0], position), fetched[1]
        except DataError as error:
            raise self._reader.bad_sample(shard, row, f"cannot be used: {error}") from error

    def _decode(self, body: bytes, position: int) -> np.ndarray:
        raise NotImplementedError

    def _replace(self, error: SampleError, position: int) -> tuple[np.ndarray, int] | None:
        raise NotImplementedError

    def _condemn(self, error: SampleError, position: int) -> None:
        """Write down a bad sample; DataError when there are too many."""
        if self.quarantine.add(error, position):
            self.telemetry.add("bad_samples")
            warnings.warn(f"quarantined: {error}", stacklevel=1)


def load_manifest(storage: Storage, retries: Retries) -> Manifest:
    """The manifest of a split, wherever it lies; DataError when it is missing, damaged or of another time."""
    if isinstance(storage, LocalStorage):
        manifest = Manifest.load(storage.directory)
    else:
        where = storage.describe(MANIFEST_NAME)
        body = retries(lambda: storage.read(MANIFEST_NAME), lambda: where)
        try:
            manifest = Manifest.from_dict(json.loads(body), Path(where))
        except ValueError as error:
            raise DataError(f"{where}: cannot read it ({error})") from error
    for shard in manifest.shards:
        check_file_name(shard.name)
    first = manifest.shards[0].name
    retries(lambda: storage.probe(first), lambda: storage.describe(first))
    return manifest


def checked_manifest(place: str | Path, deadline_s: float = 30.0, *, cached: bool = True) -> Manifest:
    """The manifest at a path or URL, and of a local split the certainty that every shard is there, whole.

    `cached` is whether there is a cache for whole shards, which some places need: DataError otherwise.
    """
    storage = storage_for(place, deadline_s)
    manifest = load_manifest(storage, Retries(deadline_s, Telemetry()))
    check_access(storage, cached=cached)
    if isinstance(storage, LocalStorage):
        check_shards(manifest, storage.directory)
    return manifest


def check_divides(global_batch_size: int, micro_batch_size: int, dp_size: int) -> None:
    """DataError unless the ranks' micro-batches make up whole global batches."""
    step = dp_size * micro_batch_size
    if step < 1 or global_batch_size < 1 or global_batch_size % step:
        nearest = (
            max(1, round(global_batch_size / step)) * step if step > 0 else "a positive micro_batch_size"
        )
        equation = f"dp_size ({dp_size}) x micro_batch_size ({micro_batch_size}) = {step}"
        raise DataError(
            f"global_batch_size ({global_batch_size}) must be a multiple of {equation}; nearest: {nearest}"
        )
