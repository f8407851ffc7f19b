"""The two streams that a run reads: training samples without end, evaluation samples exactly once.

    stream = TrainStream("data/x/train", seed=0, global_batch_size=64, micro_batch_size=16,
                         dp_rank=0, dp_size=2, transform=TrainTransform(image_size=32))
    for batch in stream: ...                      # 64 / (2 * 16) = 2 micro-batches an optimizer step

B = samples in a micro-batch. One process is one rank.
"""

import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.image.decode import decode_train
from data_shards.image.geometry import TrainTransform
from data_shards.storage.base import Storage
from data_shards.stream.base import DEFAULT_READING, Reading, Stream, check_divides
from data_shards.stream.eval import EvalStream
from data_shards.stream.order import LANES, WINDOW, GlobalOrder
from data_shards.stream.reader import SampleError
from data_shards.stream.shard_prefetcher import upcoming
from data_shards.stream.state import check_state, make_state
from data_shards.stream.workers import Batch, BatchPlan

__all__ = ["EvalStream", "TrainStream"]
SUMMED = (
    *("bytes", "cache_hits", "cache_misses"),
    *("bad_samples", "replaced", "retries", "refetches", "damaged_headers", "fetch_failures"),
)


class TrainStream(Stream):
    """This rank's micro-batches of the global training stream, without end and exactly resumable.

    Optimizer step k takes the positions [kB, (k+1)B) of `GlobalOrder`, B = global_batch_size, sorted by lane;
    rank r its r-th slice, cut into micro-batches. What a sample looks like depends on (seed, position) alone:
    neither the number of ranks nor of threads nor the prefetch shows.

    With a `quarantine` file a bad sample is written down there and replaced by the next healthy one of its
    window, which keeps its own label and is cropped as the position says; without one it ends the run.
    DataError: sizes that do not divide, a bad split, a shard that cannot be read, too many bad samples.
    """

    def __init__(
        self,
        directory: str | Path | Storage,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        transform: TrainTransform,
        threads: int = 2,
        prefetch: int = 4,
        lanes: int = LANES,
        window: int = WINDOW,
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
        check_divides(global_batch_size, micro_batch_size, dp_size)
        self.order = GlobalOrder(self.manifest.samples_per_shard, seed, lanes, window)
        self.seed, self.transform = seed, transform
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.grad_accum_steps = global_batch_size // (dp_size * micro_batch_size)
        self.samples = 0  # consumed by all ranks together, in whole optimizer steps
        self._handed = 0  # micro-batches of the step under way

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in samples consumed, never prefetched: JSON-able, < 1 KB, equal on all ranks.

        RuntimeError between the micro-batches of one optimizer step.
        """
        if self._handed:
            done = f"{self._handed} of {self.grad_accum_steps} micro-batches"
            raise RuntimeError(
                f"state_dict() inside an optimizer step ({done} handed out); call it between steps"
            )
        return make_state(self.manifest, self.order, self.samples, self.quarantine.digest(self.samples))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with any dp_size, batch sizes and threads; closes the iterator.

        DataError when the state is of another data set, seed, lanes or window. A warning when the quarantine
        file is not the one of that time: it is a record, and the stream goes on exactly as its bytes say.
        """
        check_state(state, self.manifest, self.order)
        if state.get("quarantine", known := self.quarantine.digest(state["samples"])) != known:
            fix = "bad samples are found again as they come up, those since mended are read"
            warnings.warn(
                f"quarantine {self.quarantine.path}: not as when the state was made; {fix}", stacklevel=2
            )
        self._stop()
        self.samples, self._handed = int(state["samples"]), 0

    def _batches(self) -> Generator[Batch, None, None]:
        self._handed = 0
        for batch in self._run(self._plans(self.samples), self.transform.sides):
            self._handed += 1
            if self._handed == self.grad_accum_steps:
                self._handed = 0
                self.samples += self.global_batch_size
            yield batch

    def counts(self) -> dict[str, int]:
        """This rank's small whole numbers, for the trainer to sum over the ranks; see `check_counts`."""
        totals = self.telemetry.totals()
        return {k: totals[k] for k in SUMMED} | {"recent_bad": self.quarantine.recent(self.samples)}

    def check_counts(self, summed: dict[str, int]) -> None:
        """DataError when the ranks together met more bad samples of late than may be."""
        self.quarantine.check_recent(summed["recent_bad"])

    def _plans(self, start: int) -> Iterator[BatchPlan]:
        share = self.global_batch_size // self.dp_size
        announced: tuple[int, ...] = ()
        while True:
            mine = self._mine(start)
            if (window := self.order.window_of(start)) != announced:
                announced = window
                self._announce(upcoming(self.order, start, self._lanes(start), self._cacheable()))
            shards, rows = self.order.locate(mine)
            for i in range(0, share, self.micro_batch_size):
                cut = slice(i, i + self.micro_batch_size)
                yield BatchPlan(positions=mine[cut], shards=shards[cut], rows=rows[cut])
            start += self.global_batch_size

    def _mine(self, start: int) -> np.ndarray:
        """This rank's positions of the step that starts at `start`: (B * grad_accum_steps,) int64."""
        share = self.global_batch_size // self.dp_size
        batch = self.order.global_batch(start, self.global_batch_size)
        return batch[self.dp_rank * share : (self.dp_rank + 1) * share]

    def _lanes(self, start: int) -> np.ndarray:
        """The lanes that this rank reads in the next few steps."""
        steps = [self._mine(start + i * self.global_batch_size) for i in range(4)]
        return np.unique(self.order.lane_of(np.concatenate(steps)))

    def _decode(self, body: bytes, position: int) -> np.ndarray:
        return decode_train(body, (self.seed, position), self.transform)

    def _replace(self, error: SampleError, position: int) -> tuple[np.ndarray, int]:
        """The next healthy sample of the window: by its bytes alone, whoever looks, whatever is known."""
        if self.quarantine.path is None:
            raise error
        self._condemn(error, position)
        for other in self.order.replacements(position):
            (shard,), (row,) = (a.tolist() for a in self.order.locate(np.array([other])))
            try:
                done = self._picture(self.fetch(shard, row), position, shard, row)
            except SampleError as also:
                self._condemn(also, position)
                continue
            self.telemetry.add("replaced")
            return done
        raise DataError(f"no healthy sample is left to stand in for: {error}") from error
