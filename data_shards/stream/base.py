"""The base of training and evaluation streams: manifest, reader, cache, quarantine, threads, telemetry."""

import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from data_shards.errors import DataError
from data_shards.format.index import MANIFEST_NAME
from data_shards.format.rng import DrawKey
from data_shards.storage import storage_for
from data_shards.storage.base import Storage
from data_shards.storage.cache import ShardCache
from data_shards.storage.manifest import load_manifest
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.batch import Batch, BatchPlan
from data_shards.stream.options import StreamOptions
from data_shards.stream.quarantine import Quarantine
from data_shards.stream.reader import SampleError, ShardReader
from data_shards.stream.shard_prefetcher import ShardPrefetcher
from data_shards.stream.transform import Example, Transform
from data_shards.stream.workers import Fetched, prefetched


class TrainingStream(Protocol):
    """What training reads: micro-batches of one rank without end, a state, and counters."""

    wait_s: float  # seconds that next() waited for data; its reader may reset it to 0

    @property
    def num_samples(self) -> int | None:
        """The samples of an epoch; None where nobody counted them."""

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the labels; None where they are unknown."""

    @property
    def grad_accum_steps(self) -> int:
        """Micro-batches of an optimizer step."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands after complete steps: JSON-able, equal on all ranks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, on any number of ranks; DataError where it is of other data."""

    def counts(self) -> dict[str, int]:
        """This rank's counters, to be summed over the ranks; the same names on all of them."""

    def check_counts(self, summed: dict[str, int]) -> None:
        """DataError for sums that end the run, such as too many bad samples."""


class SingleIterator:
    """An iterable with at most one active iterator, whose threads end with it."""

    _active: Generator[Batch, None, None] | None = None

    def close(self) -> None:
        """Join the threads; it may be iterated again."""
        self._stop()

    def __iter__(self) -> Iterator[Batch]:
        """A new iterator; an active one is closed."""
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


class Stream(SingleIterator):
    """The base of both streams over a split.

    `seed` is the first word of the key of every random draw; the second is the sample's position.
    """

    seed: int = 0

    def __init__(self, split: str | Path | Storage, transform: Transform, options: StreamOptions) -> None:
        self.options, self.transform = options, transform
        self.dp_rank, self.dp_size = options.dp_rank, options.dp_size
        self.telemetry = Telemetry()
        self.wait_s = 0.0  # seconds that next() waited for data; its reader may reset it to 0
        self.retries = Retries(options.read.deadline_s, self.telemetry)
        self.storage = storage_for(split, options.read.deadline_s)
        self.manifest = load_manifest(self.storage, self.retries)
        self.num_samples, self.classes = self.manifest.samples, self.manifest.classes
        self.num_classes = len(self.classes)
        self.quarantine = Quarantine(options.quarantine, self.manifest)
        self.cache = self._make_cache() if options.read.cache is not None else None
        self.reader = ShardReader(
            self.storage,
            self.manifest,
            cache=self.cache,
            retries=self.retries,
            notice=self.quarantine.notice,
        )
        self.reader.check_members(transform.fields)
        self._prefetcher: ShardPrefetcher | None = None

    def _make_cache(self) -> ShardCache:
        read = self.options.read
        assert read.cache is not None
        return ShardCache(
            read.cache,
            read.cache_bytes,
            self.storage,
            self.manifest,
            retries=self.retries,
            notice=self.quarantine.notice,
        )

    def labels(self) -> np.ndarray:
        """The label of every sample of the split, in index order: (samples,) int64; reads every index."""
        labels = np.concatenate([self.reader.labels(shard) for shard in range(len(self.manifest.shards))])
        if (highest := int(labels.max())) >= len(self.manifest.classes):
            where = self.storage.describe(MANIFEST_NAME)
            raise DataError(f"{where}: {self._unknown(highest)}; pack or index the shards again")
        return labels

    def _unknown(self, label: int) -> str:
        return f"label {label} is none of the {len(self.manifest.classes)} classes of the manifest"

    def close(self) -> None:
        """Join the threads and close the shards; the stream may be iterated again."""
        self._stop()
        self.reader.close()
        if self.cache:
            self.cache.close()

    def _run(self, plans: Iterator[BatchPlan]) -> Generator[Batch, None, None]:
        """The batches of `plans`: fetched and decoded by threads (`fetch`, `decode`), counted here."""
        batches = prefetched(plans, self, self.transform.collators, self.options)
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
        """Join every thread; those that retry a failing source are woken."""
        self.retries.stop.set()
        batches.close()
        if self._prefetcher:
            self._prefetcher.close()
            self._prefetcher = None
        self.retries.stop.clear()

    def fetch(self, shard: int, row: int) -> Fetched:
        """The members of a sample that the transform needs, as they are stored, or its error."""
        try:
            members = self.reader.read(shard, row, self.transform.fields)
        except SampleError as error:
            return error
        label = members.get("label", 0)
        if isinstance(label, int) and self.manifest.classes and label >= len(self.manifest.classes):
            return self.reader.bad_sample(shard, row, self._unknown(label))
        return members

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> Example | None:
        """What the transform makes of a sample, or of its replacement."""
        try:
            return self._decoded(fetched, position, shard, row)
        except SampleError as error:
            return self._replace(error, position)

    def _decoded(self, fetched: Fetched, position: int, shard: int, row: int) -> Example:
        if isinstance(fetched, DataError):
            raise fetched
        try:
            return self.transform(fetched, DrawKey(self.seed, position))
        except DataError as error:
            raise self.reader.bad_sample(shard, row, f"cannot be used: {error}") from error

    def stalled(self) -> DataError:
        """The error for a batch that does not come in time: it names the shards that are being read."""
        waited = f"no batch for {self.options.read.stall_s:.0f} s"
        shards = ", ".join(self.reader.busy()) or "no shard"
        return DataError(f"{waited} while reading {shards}; see to that file system")

    def _replace(self, error: SampleError, position: int) -> Example | None:
        """The example that takes a bad sample's position; None gives the position weight 0."""
        raise NotImplementedError

    def _quarantine(self, error: SampleError, position: int) -> None:
        """Record a bad sample; DataError when there are too many."""
        if self.quarantine.add(error, position):
            self.telemetry.add("bad_samples")
            warnings.warn(f"quarantined: {error}", stacklevel=1)

    def _announce(self, shards: list[int]) -> None:
        """Fetch these shards, soonest first, into the cache; close those that are open."""
        if self.cache:
            self.reader.close()
            self._prefetcher = self._prefetcher or ShardPrefetcher(
                self.cache, self.options.read.cache_threads
            )
            self._prefetcher.announce(shards)

    def _cacheable(self) -> int:
        """How many shards ahead to announce: twice what the cache holds."""
        sizes = [shard.bytes for shard in self.manifest.shards]
        return 1 + 2 * self.options.read.cache_bytes * len(sizes) // sum(sizes)
