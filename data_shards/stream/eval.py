"""The stream of evaluation: every sample exactly once, on any number of ranks.

Legend: B samples in a rank's batch, W ranks, n samples that are evaluated.
"""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_shards.errors import DataError
from data_shards.format.classes import label_map
from data_shards.format.index import MANIFEST_NAME
from data_shards.format.rng import Purpose, permutation
from data_shards.storage.base import Storage
from data_shards.stream.base import Stream
from data_shards.stream.batch import Batch, BatchPlan
from data_shards.stream.options import DEFAULT_OPTIONS, EvalSampling, StreamOptions
from data_shards.stream.reader import SampleError
from data_shards.stream.transform import Transform
from data_shards.stream.workers import Fetched


class EvalStream(Stream):
    """This rank's batches of every sample exactly once, in index order; iterating again starts over.

    Batch b of all W ranks together has the samples [b*B*W, (b+1)*B*W), and rank r takes the r-th slice of
    B = batch_size. The end is padded with samples of weight 0 and position -1 (black images), so every
    rank has len(stream) batches.

    `sampling.shuffle_seed` pads the end with the first samples again, of weight 0, instead. The neighbours of
    a sample are then a function of the seed, and of no batch size or number of ranks.

    `classes` are class names to which labels are mapped by name; they become the stream's `classes`.

    Leaving a bad sample out would change the metric silently, so it is a DataError. `bad_samples="drop"`
    gives it weight 0, and records it in the `quarantine` file if there is one.

    Raises:
        DataError: a bad split, a class of the split that is not among `classes`, nothing to evaluate.
    """

    def __init__(
        self,
        split: str | Path | Storage,
        sampling: EvalSampling,
        transform: Transform,
        options: StreamOptions = DEFAULT_OPTIONS,
        *,
        classes: Sequence[str] | None = None,
        bad_samples: Literal["fatal", "drop"] = "fatal",
    ) -> None:
        super().__init__(split, transform, options)
        if bad_samples not in ("fatal", "drop"):
            raise DataError(f"bad_samples ({bad_samples!r}) must be 'fatal' or 'drop'")
        self.batch_size, self.bad_samples = sampling.batch_size, bad_samples
        self._labels = self._map_labels(classes)
        self.repeats = sampling.shuffle_seed is not None
        self.in_order = sampling.samples is None and not self.repeats
        self.samples = _selected(sampling, self.manifest.samples)  # (num_samples,) in the order of evaluation
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
            raise DataError(f"{self.storage.describe(MANIFEST_NAME)}: {error}") from error
        self.classes, self.num_classes = tuple(classes), len(classes)
        return labels

    def labels(self) -> np.ndarray:
        """The label of every sample of the split, in index order: (samples,) int64; reads every index."""
        return self._labels[super().labels()]

    def __len__(self) -> int:
        """The number of batches of each rank."""
        return -(-self.num_samples // (self.batch_size * self.dp_size))

    def _batches(self) -> Generator[Batch, None, None]:
        return self._run(self._plans())

    def _plans(self) -> Iterator[BatchPlan]:
        ends = np.cumsum(self.manifest.samples_per_shard)
        count = int(np.searchsorted(ends, self.samples[-1], side="right")) + 1
        ahead, announce_at = self._cacheable(), 0
        if not self.in_order:
            needed = np.unique(np.searchsorted(ends, self.samples, side="right"))
            self._announce(needed[:ahead].tolist())
        for batch in range(len(self)):
            indices, counted = self._indices(batch)
            samples = self.samples[indices]
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

    def _indices(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices into `samples` of a batch, and which of them count: (B,) each."""
        start = (batch * self.dp_size + self.dp_rank) * self.batch_size
        indices = np.arange(start, start + self.batch_size, dtype=np.int64)
        inside = indices % self.num_samples if self.repeats else np.minimum(indices, self.num_samples - 1)
        return inside, indices < self.num_samples

    def fetch(self, shard: int, row: int) -> Fetched:
        """The members of a sample, its label mapped, or its error."""
        fetched = super().fetch(shard, row)
        if isinstance(fetched, DataError) or "label" not in fetched:
            return fetched
        return {**fetched, "label": int(self._labels[int(fetched["label"])])}

    def _replace(self, error: SampleError, position: int) -> None:
        if self.bad_samples == "fatal":
            raise error
        self._quarantine(error, position)
        self.telemetry.add("replaced")


def _selected(sampling: EvalSampling, num_samples: int) -> np.ndarray:
    """The samples to evaluate: (n,) int64."""
    samples = np.arange(num_samples, dtype=np.int64) if sampling.samples is None else sampling.samples
    if sampling.shuffle_seed is not None:
        samples = samples[permutation(len(samples), Purpose.EVALUATION, sampling.shuffle_seed)]
    return samples[: sampling.limit]
