"""The base of training and evaluation streams: their splits, threads, telemetry."""

import warnings
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.format.rng import DrawKey
from data_shards.storage.base import Storage
from data_shards.storage.cache import ShardCache
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.batch import Batch, BatchPlan
from data_shards.stream.options import StreamOptions
from data_shards.stream.quarantine import Quarantine
from data_shards.stream.reader import SampleError, ShardReader
from data_shards.stream.split import Place, Split
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
    """The base of both streams. Their splits have their shards numbered through, in the order of `places`.

    `seed` is the first word of the key of every random draw; the second is the sample's position.
    """

    seed: int = 0

    def __init__(self, places: Sequence[Place], transform: Transform, options: StreamOptions) -> None:
        self.options, self.transform = options, transform
        self.dp_rank, self.dp_size = options.dp_rank, options.dp_size
        self.telemetry = Telemetry()
        self.wait_s = 0.0  # seconds that next() waited for data; its reader may reset it to 0
        self.retries = Retries(options.read.deadline_s, self.telemetry)
        fields, optional = transform.fields, getattr(transform, "optional_fields", ())
        self.splits = tuple(Split(place, fields, options, self.retries, optional) for place in places)
        shards = [len(split.manifest.shards) for split in self.splits]
        self._first_shards = list(accumulate(shards[:-1], initial=0))
        self.num_samples = self.manifest.samples

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.splits[0].classes

    @property
    def num_classes(self) -> int:
        """The number of the labels."""
        return len(self.classes)

    @property
    def storage(self) -> Storage:
        """The storage of the first split."""
        return self.splits[0].storage

    @property
    def manifest(self) -> Manifest:
        """The manifest of the first split."""
        return self.splits[0].manifest

    @property
    def reader(self) -> ShardReader:
        """The reader of the first split."""
        return self.splits[0].reader

    @property
    def cache(self) -> ShardCache | None:
        """The cache of the first split, if there is one."""
        return self.splits[0].cache

    @property
    def quarantine(self) -> Quarantine:
        """The bad samples of the first split."""
        return self.splits[0].quarantine

    def labels(self) -> np.ndarray:
        """The labels of the first split in index order: (samples,) int64; reads every index."""
        return self.splits[0].labels()

    def close(self) -> None:
        """Join the threads and close the shards; the stream may be iterated again."""
        self._stop()
        for split in self.splits:
            split.close()

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
        for split in self.splits:
            split.stop_fetching()
        self.retries.stop.clear()

    def split_of(self, shard: int) -> tuple[Split, int]:
        """The split of a shard, and the number that the shard has there."""
        number = bisect_right(self._first_shards, shard) - 1
        return self.splits[number], shard - self._first_shards[number]

    def fetch(self, shard: int, row: int) -> Fetched:
        """The members of a sample that the transform needs, its label mapped; or its error."""
        split, shard = self.split_of(shard)
        return split.fetch(shard, row)

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> Example | None:
        """What the transform makes of a sample, or of its replacement."""
        try:
            return self._decoded(fetched, position, shard, row)
        except SampleError as error:
            return self._replace(error, position, self.split_of(shard)[0])

    def _decoded(self, fetched: Fetched, position: int, shard: int, row: int) -> Example:
        if isinstance(fetched, DataError):
            raise fetched
        try:
            return self.transform(fetched, DrawKey(self.seed, position))
        except DataError as error:
            split, shard = self.split_of(shard)
            raise split.reader.bad_sample(shard, row, f"cannot be used: {error}") from error

    def stalled(self) -> DataError:
        """The error for a batch that does not come in time: it names the shards that are being read."""
        waited = f"no batch for {self.options.read.stall_s:.0f} s"
        shards = ", ".join(name for split in self.splits for name in split.reader.busy()) or "no shard"
        return DataError(f"{waited} while reading {shards}; see to that file system")

    def _replace(self, error: SampleError, position: int, split: Split) -> Example | None:
        """The example that takes a bad sample's position; None gives the position weight 0."""
        raise NotImplementedError

    def _quarantine(self, error: SampleError, position: int, split: Split) -> None:
        """Record a bad sample; DataError when there are too many."""
        if split.quarantine.add(error, position):
            self.telemetry.add("bad_samples")
            warnings.warn(f"quarantined: {error}", stacklevel=1)
