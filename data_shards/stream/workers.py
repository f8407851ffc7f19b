"""Batches fetched and decoded ahead of their consumer by threads, in order, alike for any number of threads.

    plans -> fetch threads: compressed bytes -> decode threads: uint8 pictures -> a ring of batches

No worker processes: reading, decoding and resizing release the GIL, so nothing is pickled and no shared
memory can go stale. B = samples in the batch, H, W = image height and width in pixels.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from data_shards.errors import DataError

CHUNK = (
    16  # samples a task at most: small enough to keep threads busy at a batch's end, large enough to be cheap
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of one rank.

    images (B, 3, H, W) uint8, pinned where there is a GPU; labels (B,) int64; positions (B,) int64, the key
    of every random draw of a sample: its position in the training stream, or its index in evaluation, -1 for
    padding; weights (B,) float32, 0 for padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The samples of a batch: positions, shards and rows, each (B,) int64; position -1 is padding.

    `weights` (B,) float32 are 0 for samples that do not count; None counts all but the padding.
    """

    positions: np.ndarray
    shards: np.ndarray
    rows: np.ndarray
    weights: np.ndarray | None = None


Fetched = tuple[bytes, int] | DataError  # compressed image and label, or what is wrong with the sample


class Loader(Protocol):
    """The two halves of a sample's way."""

    def fetch(self, shard: int, row: int) -> Fetched:
        """The sample's bytes and label, or its SampleError; any other error is raised."""

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> tuple[np.ndarray, int] | None:
        """Its picture (3, H, W) uint8 and its label; None is a black picture of weight 0."""


class Ring:
    """Batches whose image memory goes round, `most` of them: taken again once nobody holds a tensor on it.

    Channels come last in memory, as pictures are decoded and as convolutions like them. On a GPU machine the
    memory is pinned and torch's own allocator is the ring: it also waits for copies.
    """

    def __init__(self, sides: tuple[int, int], most: int, pinned: bool) -> None:
        self.sides, self.most, self.pinned = sides, most, pinned  # height and width of the images in pixels
        self._buffers: list[np.ndarray] = []

    def batch(self, plan: BatchPlan) -> Batch:
        """A batch whose images are anything (padding black) and labels zero; positions and weights final."""
        images = self._images(len(plan.positions))
        if (padding := plan.positions < 0).any():
            images[torch.from_numpy(padding)] = 0
        return Batch(
            images=images,
            labels=torch.from_numpy(np.zeros(len(plan.positions), dtype=np.int64)),
            positions=torch.from_numpy(plan.positions.copy()),
            weights=torch.from_numpy((~padding if plan.weights is None else plan.weights).astype(np.float32)),
        )

    def _images(self, size: int) -> torch.Tensor:
        shape = size, *self.sides, 3
        if self.pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).permute(0, 3, 1, 2)
        for buffer in self._buffers:
            # A tensor on it, or a view of one, holds a reference; else: the list, `buffer`, the argument.
            if len(buffer) == size and sys.getrefcount(buffer) == 3:
                return torch.from_numpy(buffer).permute(0, 3, 1, 2)
        self._buffers = [np.empty(shape, dtype=np.uint8), *self._buffers[: self.most - 1]]
        return torch.from_numpy(self._buffers[0]).permute(0, 3, 1, 2)


def fill(batch: Batch, plan: BatchPlan, rows: range, fetched: list[Fetched | None], loader: Loader) -> None:
    """Decode the samples `rows` of a batch into their places."""
    images, labels, weights = batch.images.numpy(), batch.labels.numpy(), batch.weights.numpy()
    for i, body in zip(rows, fetched, strict=True):
        if body is None:
            continue
        done = loader.decode(body, int(plan.positions[i]), int(plan.shards[i]), int(plan.rows[i]))
        if done is None:
            images[i], weights[i] = 0, 0
        else:
            images[i], labels[i] = done


def fetch(plan: BatchPlan, rows: range, loader: Loader) -> list[Fetched | None]:
    """The compressed samples `rows` of a batch; None for padding."""
    return [
        loader.fetch(int(plan.shards[i]), int(plan.rows[i])) if plan.positions[i] >= 0 else None for i in rows
    ]


def prefetched(
    plans: Iterator[BatchPlan],
    loader: Loader,
    *,
    ring: Ring,
    threads: int,
    fetch_threads: int,
    depth: int,
    stall_s: float,
    stalled: Callable[[], DataError],
) -> Generator[tuple[Batch, float], None, None]:
    """The batches of `plans` in order, each with the seconds that the consumer waited for it.

    At most `depth` batches are fetched and decoded ahead. `fetch_threads` 0 fetches in the decode threads.
    Closing the generator joins its threads; an error of the loader is raised at the batch it belongs to, and
    `stalled()` when a batch does not come for `stall_s` seconds: its threads hang in the system and are left.
    """
    pending: deque[tuple[Batch, list[Future[Future[None] | None]]]] = deque()
    decoders = ThreadPoolExecutor(threads, thread_name_prefix="data-shards-decode")
    fetchers = ThreadPoolExecutor(fetch_threads or threads, thread_name_prefix="data-shards-fetch")
    hanging = False

    def task(batch: Batch, plan: BatchPlan, rows: range) -> Future[None] | None:
        bodies = fetch(plan, rows, loader)
        if fetch_threads:
            return decoders.submit(fill, batch, plan, rows, bodies, loader)
        fill(batch, plan, rows, bodies, loader)
        return None

    def submit_one() -> None:
        if (plan := next(plans, None)) is not None:
            batch = ring.batch(plan)
            chunks = _chunks(len(plan.positions), threads)
            pending.append((batch, [fetchers.submit(task, batch, plan, rows) for rows in chunks]))

    try:
        for _ in range(depth):
            submit_one()
        while pending:
            batch, futures = pending.popleft()
            began = time.perf_counter()
            if hanging := not _finished(futures, began + stall_s):
                raise stalled()
            waited_s = time.perf_counter() - began
            submit_one()
            yield batch, waited_s
            del batch  # so that the ring sees it free as soon as the consumer lets go
    finally:
        fetchers.shutdown(wait=not hanging, cancel_futures=True)
        decoders.shutdown(wait=not hanging, cancel_futures=True)


def _finished(futures: list[Future[Future[None] | None]], deadline: float) -> bool:
    """Wait for a batch's tasks, raising their errors; False when the deadline passes first."""
    try:
        for future in futures:
            decoding = future.result(max(0.0, deadline - time.perf_counter()))
            if decoding is not None:
                decoding.result(max(0.0, deadline - time.perf_counter()))
    except TimeoutError:
        return False
    return True


def _chunks(size: int, threads: int) -> list[range]:
    step = max(1, min(CHUNK, -(-size // threads)))
    return [range(start, min(start + step, size)) for start in range(0, size, step)]
