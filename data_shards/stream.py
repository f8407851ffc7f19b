"""The two streams that a run reads: training samples without end, evaluation samples exactly once.

    stream = TrainStream("data/x/train", seed=0, global_batch_size=64, micro_batch_size=16,
                         dp_rank=0, dp_size=2, transform=TrainTransform(image_size=32))
    for batch in stream: ...                      # 64 / (2 * 16) = 2 micro-batches an optimizer step

B = samples in a micro-batch, S = image_size in pixels. One process is one rank.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from data_shards.augment import TrainTransform
from data_shards.decode import decode_eval, decode_train
from data_shards.errors import DataError
from data_shards.index import Manifest
from data_shards.order import LANES, WINDOW, GlobalOrder
from data_shards.prefetch import Batch, BatchPlan, prefetched
from data_shards.reader import ShardReader
from data_shards.state import check_state, make_state


class _Stream:
    """What both streams share: manifest, reader, at most one iterator, the time spent waiting for it."""

    def __init__(
        self, directory: str | Path, dp_rank: int, dp_size: int, threads: int, prefetch: int
    ) -> None:
        if not 0 <= dp_rank < dp_size:
            raise DataError(f"dp_rank ({dp_rank}) must be in 0 ... dp_size - 1 ({dp_size - 1})")
        for option, value in {"threads": threads, "prefetch": prefetch}.items():
            if value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        self.manifest = Manifest.load(directory)
        self.num_samples, self.classes = self.manifest.samples, self.manifest.classes
        self.num_classes = len(self.classes)
        self.dp_rank, self.dp_size, self.threads, self.prefetch = dp_rank, dp_size, threads, prefetch
        self.wait_s = 0.0  # seconds that next() waited for data; whoever reads it may set it back to 0
        self._reader = ShardReader(directory, self.manifest)
        self._active: Generator[Batch, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """A new iterator; one that was running is closed."""
        self._stop()
        self._active = self._batches()
        return self._active

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Join the threads and close the shards; the stream may be iterated again."""
        self._stop()
        self._reader.close()

    def _stop(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

    def _batches(self) -> Generator[Batch, None, None]:
        raise NotImplementedError

    def _run(self, plans: Iterator[BatchPlan], image_size: int) -> Generator[Batch, None, None]:
        batches = prefetched(
            plans, self._load, image_size=image_size, threads=self.threads, depth=self.prefetch
        )
        try:
            for batch, waited_s in batches:
                self.wait_s += waited_s
                yield batch
        finally:
            batches.close()

    def _load(self, position: int, shard: int, row: int) -> tuple[np.ndarray, int]:
        body, label = self._reader.read(shard, row)
        try:
            return self._decode(body, position), label
        except DataError as error:
            raise DataError(f"{self._reader.describe(shard, row)}: {error}") from error

    def _decode(self, body: bytes, position: int) -> np.ndarray:
        raise NotImplementedError


class TrainStream(_Stream):
    """This rank's micro-batches of the global training stream, without end and exactly resumable.

    Optimizer step k takes the positions [kB, (k+1)B) of `GlobalOrder`, B = global_batch_size, sorted by lane;
    rank r its r-th slice, cut into micro-batches. What a sample looks like depends on (seed, position) alone:
    neither the number of ranks nor of threads nor the prefetch shows. DataError: sizes that do not divide, or
    a bad split.
    """

    def __init__(
        self,
        directory: str | Path,
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
    ) -> None:
        super().__init__(directory, dp_rank, dp_size, threads, prefetch)
        _check_divides(global_batch_size, micro_batch_size, dp_size)
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
        return make_state(self.manifest, self.order, self.samples)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with any dp_size, batch sizes and threads; closes the iterator.

        DataError when the state is of another data set, seed, lanes or window.
        """
        check_state(state, self.manifest, self.order)
        self._stop()
        self.samples, self._handed = int(state["samples"]), 0

    def _batches(self) -> Generator[Batch, None, None]:
        self._handed = 0
        for batch in self._run(self._plans(self.samples), self.transform.image_size):
            self._handed += 1
            if self._handed == self.grad_accum_steps:
                self._handed = 0
                self.samples += self.global_batch_size
            yield batch

    def _plans(self, start: int) -> Iterator[BatchPlan]:
        share = self.global_batch_size // self.dp_size
        while True:
            mine = self.order.global_batch(start, self.global_batch_size)
            mine = mine[self.dp_rank * share : (self.dp_rank + 1) * share]  # (B * grad_accum_steps,)
            shards, rows = self.order.locate(mine)
            for i in range(0, share, self.micro_batch_size):
                cut = slice(i, i + self.micro_batch_size)
                yield BatchPlan(positions=mine[cut], shards=shards[cut], rows=rows[cut])
            start += self.global_batch_size

    def _decode(self, body: bytes, position: int) -> np.ndarray:
        return decode_train(body, (self.seed, position), self.transform)


class EvalStream(_Stream):
    """This rank's batches of every sample exactly once, in index order; iterating again starts over.

    Batch b of all W ranks together is the samples [b*B*W, (b+1)*B*W), rank r its r-th slice of B =
    batch_size; the end is padded with samples of weight 0, position -1 and black images, so every rank has
    len(stream) batches. `limit` stops after the first `limit` samples, `crop_ratio` is `decode_eval`'s.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        batch_size: int,
        dp_rank: int,
        dp_size: int,
        image_size: int,
        crop_ratio: float = 1.0,
        limit: int | None = None,
        threads: int = 2,
        prefetch: int = 4,
    ) -> None:
        super().__init__(directory, dp_rank, dp_size, threads, prefetch)
        for option, value in {"batch_size": batch_size, "image_size": image_size, "limit": limit}.items():
            if value is not None and value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        self.batch_size, self.image_size, self.crop_ratio = batch_size, image_size, crop_ratio
        self.num_samples = min(self.num_samples, limit or self.num_samples)

    def __len__(self) -> int:
        """How many batches each rank gives."""
        return -(-self.num_samples // (self.batch_size * self.dp_size))

    def _batches(self) -> Generator[Batch, None, None]:
        return self._run(self._plans(), self.image_size)

    def _plans(self) -> Iterator[BatchPlan]:
        ends = np.cumsum(self.manifest.samples_per_shard)
        for batch in range(len(self)):
            start = (batch * self.dp_size + self.dp_rank) * self.batch_size
            samples = np.arange(start, start + self.batch_size, dtype=np.int64)
            clipped = np.minimum(samples, self.num_samples - 1)
            shards = np.searchsorted(ends, clipped, side="right")
            rows = clipped - ends[shards] + self.manifest.samples_per_shard[shards]
            yield BatchPlan(
                positions=np.where(samples < self.num_samples, samples, -1), shards=shards, rows=rows
            )

    def _decode(self, body: bytes, position: int) -> np.ndarray:
        return decode_eval(body, self.image_size, self.crop_ratio)


def _check_divides(global_batch_size: int, micro_batch_size: int, dp_size: int) -> None:
    step = dp_size * micro_batch_size
    if step < 1 or global_batch_size < 1 or global_batch_size % step:
        nearest = (
            max(1, round(global_batch_size / step)) * step if step > 0 else "a positive micro_batch_size"
        )
        equation = f"dp_size ({dp_size}) x micro_batch_size ({micro_batch_size}) = {step}"
        raise DataError(
            f"global_batch_size ({global_batch_size}) must be a multiple of {equation}; nearest: {nearest}"
        )
