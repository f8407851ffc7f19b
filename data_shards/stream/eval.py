"""The stream of evaluation: every sample exactly once, on any number of ranks.

B = samples in a rank's batch, W = ranks, n = samples that are given.
"""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_shards.errors import DataError
from data_shards.format.classes import label_map
from data_shards.format.index import MANIFEST_NAME
from data_shards.format.rng import Purpose, permutation
from data_shards.image.decode import decode_eval
from data_shards.image.sides import ImageSize, sides
from data_shards.storage.base import Storage
from data_shards.stream.base import DEFAULT_READING, Reading, Stream
from data_shards.stream.reader import SampleError
from data_shards.stream.workers import Batch, BatchPlan, Fetched


class EvalStream(Stream):
    """This rank's batches of every sample exactly once, in index order; iterating again starts over.

    Batch b of all W ranks together is the samples [b*B*W, (b+1)*B*W), rank r its r-th slice of B =
    batch_size; the end is padded with samples of weight 0, position -1 and black images, so every rank has
    len(stream) batches. `limit` stops after the first `limit` samples, `crop_ratio` is `decode_eval`'s.

    `samples` (n,) int64 gives those alone, in that order. `shuffle_seed` gives all of them in an order drawn
    by it, and pads the end with its first samples again, of weight 0: what stands beside a sample is then a
    function of the seed, and of no batch size or number of ranks, wherever a batch is cut.

    `classes` are class names that labels are mapped to by name: a label is then a place in them, and they are
    the stream's `classes`. DataError where the split has a class that they lack.

    A bad sample is a DataError: leaving it out would change the metric without a word. `bad_samples="drop"`
    gives it weight 0, and writes it into the `quarantine` file if there is one.
    """

    def __init__(
        self,
        directory: str | Path | Storage,
        *,
        batch_size: int,
        dp_rank: int,
        dp_size: int,
        image_size: ImageSize,
        crop_ratio: float = 1.0,
        limit: int | None = None,
        threads: int = 2,
        prefetch: int = 4,
        samples: np.ndarray | None = None,
        shuffle_seed: int | None = None,
        classes: Sequence[str] | None = None,
        bad_samples: Literal["fatal", "drop"] = "fatal",
        quarantine: str | Path | None = None,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        super().__init__(
            directory,
            dp_rank,
            dp_size,
            threads=threads,
            prefetch=prefetch,
            quarantine=quarantine,
            reading=reading,
        )
        if bad_samples not in ("fatal", "drop"):
            raise DataError(f"bad_samples ({bad_samples!r}) must be 'fatal' or 'drop'")
        self.bad_samples = bad_samples
        self._labels = self._map_labels(classes)
        for option, value in {"batch_size": batch_size, "limit": limit}.items():
            if value is not None and value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        self.batch_size, self.sides, self.crop_ratio = batch_size, sides(image_size), crop_ratio
        given = np.arange(self.num_samples, dtype=np.int64) if samples is None else samples
        if shuffle_seed is not None:
            given = given[permutation(len(given), Purpose.EVALUATION, shuffle_seed)]
        self.repeats = shuffle_seed is not None
        self.in_order = samples is None and shuffle_seed is None
        self.samples = given[:limit]  # (num_samples,) in the order in which they are given
        self.num_samples = len(self.samples)
        if self.num_samples == 0:
            raise DataError("samples is empty: there is nothing to evaluate")

    def _map_labels(self, classes: Sequence[str] | None) -> np.ndarray:
        """The label that each class of the split has here: (num_classes of the split,) int64."""
        if classes is None or tuple(classes) == self.classes:
            return np.arange(self.num_classes)
        try:
            labels = label_map(self.classes, classes)
        except DataError as error:
            raise DataError(f"{self._storage.describe(MANIFEST_NAME)}: {error}") from error
        self.classes, self.num_classes = tuple(classes), len(classes)
        return labels

    def labels(self) -> np.ndarray:
        """The label of every sample of the split, in index order: (samples,) int64; reads every index."""
        return self._labels[super().labels()]

    def fetch(self, shard: int, row: int) -> Fetched:
        """The compressed image and the label of a sample, or what is wrong with it."""
        fetched = super().fetch(shard, row)
        return fetched if isinstance(fetched, DataError) else (fetched[0], int(self._labels[fetched[1]]))

    def __len__(self) -> int:
        """How many batches each rank gives."""
        return -(-self.num_samples // (self.batch_size * self.dp_size))

    def _batches(self) -> Generator[Batch, None, None]:
        return self._run(self._plans(), self.sides)

    def _plans(self) -> Iterator[BatchPlan]:
        ends = np.cumsum(self.manifest.samples_per_shard)
        count = int(np.searchsorted(ends, self.samples[-1], side="right")) + 1
        ahead, announce_at = self._cacheable(), 0
        if not self.in_order:
            everywhere = np.unique(np.searchsorted(ends, self.samples, side="right"))
            self._announce(everywhere[:ahead].tolist())
        for batch in range(len(self)):
            places, counted = self._places(batch)
            samples = self.samples[places]
            shards = np.searchsorted(ends, samples, side="right")
            rows = samples - ends[shards] + self.manifest.samples_per_shard[shards]
            if self.in_order and (first := int(shards[0])) >= announce_at:
                announce_at = first + max(1, ahead // 2)
                self._announce(list(range(first, min(count, first + ahead))))
            yield BatchPlan(
                positions=np.where(counted | self.repeats, samples, -1),
                shards=shards,
                rows=rows,
                weights=counted,
            )

    def _places(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a batch, the places of its samples in `samples`, and which of them count: (B,) twice."""
        start = (batch * self.dp_size + self.dp_rank) * self.batch_size
        places = np.arange(start, start + self.batch_size, dtype=np.int64)
        inside = places % self.num_samples if self.repeats else np.minimum(places, self.num_samples - 1)
        return inside, places < self.num_samples

    def _decode(self, body: bytes, position: int) -> np.ndarray:
        return decode_eval(body, self.sides, self.crop_ratio)

    def _replace(self, error: SampleError, position: int) -> None:
        if self.bad_samples == "fatal":
            raise error
        self._condemn(error, position)
        self.telemetry.add("replaced")
