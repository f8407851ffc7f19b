"""The stream of evaluation: every sample exactly once, on any number of ranks.

Legend: B samples in a rank's batch, W ranks, n samples that are evaluated.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import Purpose, permutation
from data_shards.stream.base import Stream
from data_shards.stream.batch import Batch, BatchPlan
from data_shards.stream.options import DEFAULT_OPTIONS, EvalSampling, StreamOptions
from data_shards.stream.reader import SampleError
from data_shards.stream.split import Place, Split
from data_shards.stream.transform import Transform


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
        split: Place,
        sampling: EvalSampling,
        transform: Transform,
        options: StreamOptions = DEFAULT_OPTIONS,
        *,
        classes: Sequence[str] | None = None,
        bad_samples: Literal["fatal", "drop"] = "fatal",
    ) -> None:
        super().__init__([split], transform, options)
        if bad_samples not in ("fatal", "drop"):
            raise DataError(f"bad_samples ({bad_samples!r}) must be 'fatal' or 'drop'")
        self.batch_size, self.bad_samples = sampling.batch_size, bad_samples
        if classes is not None:
            self.splits[0].map_labels(classes)
        self.repeats = sampling.shuffle_seed is not None
        self.in_order = sampling.samples is None and not self.repeats
        self.samples = _selected(sampling, self.manifest.samples)  # (num_samples,) in the order of evaluation
        self.num_samples = len(self.samples)
        if self.num_samples == 0:
            raise DataError("samples is empty: there is nothing to evaluate")

    def __len__(self) -> int:
        """The number of batches of each rank."""
        return -(-self.num_samples // (self.batch_size * self.dp_size))

    def _batches(self) -> Generator[Batch, None, None]:
        return self._run(self._plans())

    def _plans(self) -> Iterator[BatchPlan]:
        ends = np.cumsum(self.manifest.samples_per_shard)
        count = int(np.searchsorted(ends, self.samples[-1], side="right")) + 1
        ahead, announce_at = self.splits[0].cacheable(), 0
        if not self.in_order:
            needed = np.unique(np.searchsorted(ends, self.samples, side="right"))
            self.splits[0].announce(needed[:ahead].tolist())
        for batch in range(len(self)):
            indices, counted = self._indices(batch)
            samples = self.samples[indices]
            shards = np.searchsorted(ends, samples, side="right")
            rows = samples - ends[shards] + self.manifest.samples_per_shard[shards]
            if self.in_order and (first := int(shards[0])) >= announce_at:
                announce_at = first + max(1, ahead // 2)
                self.splits[0].announce(list(range(first, min(count, first + ahead))))
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

    def _replace(self, error: SampleError, position: int, split: Split) -> None:
        if self.bad_samples == "fatal":
            raise error
        self._quarantine(error, position, split)
        self.telemetry.add("replaced")


def _selected(sampling: EvalSampling, num_samples: int) -> np.ndarray:
    """The samples to evaluate: (n,) int64."""
    samples = np.arange(num_samples, dtype=np.int64) if sampling.samples is None else sampling.samples
    if sampling.shuffle_seed is not None:
        samples = samples[permutation(len(samples), Purpose.EVALUATION, sampling.shuffle_seed)]
    return samples[: sampling.limit]
