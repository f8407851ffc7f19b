"""Threads that fetch and decode batches ahead of their consumer; the result depends on no number of threads.

    plans -> fetch threads: members, as stored -> decode threads: examples -> batches, in order

There are no worker processes. Reading, decoding and resizing release the GIL, so nothing is pickled and
nothing lies in shared memory.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Protocol

from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.stream.batch import Batch, BatchPlan, UnfinishedBatch
from data_shards.stream.collate import BufferPool, Collator, ring_size
from data_shards.stream.options import StreamOptions
from data_shards.stream.transform import Example

CHUNK = 16  # samples of a task at most: few enough to balance the end of a batch, enough to cost little

Fetched = Members | DataError  # or the error of the sample


class Loader(Protocol):
    """What fetches and decodes the samples of a stream."""

    def fetch(self, shard: int, row: int) -> Fetched:
        """The sample's members, or its SampleError; any other error is raised."""

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> Example | None:
        """What its transform gives; None is a sample of weight 0, as padding."""

    def stalled(self) -> DataError:
        """The error for a batch that does not come in time."""


def prefetched(
    plans: Iterator[BatchPlan], loader: Loader, collators: Mapping[str, Collator], options: StreamOptions
) -> Generator[tuple[Batch, float], None, None]:
    """The batches of `plans` in order, each with the seconds that the consumer waited for it.

    At most `options.prefetch` batches are fetched and decoded ahead, fewer where they would take more than
    `options.ring_bytes`. Closing the generator joins its threads.
    An error of the loader is raised at the batch that it belongs to. `loader.stalled()` is raised when a
    batch does not come for `options.read.stall_s` seconds; its threads hang in the system and are not joined.
    """
    if (first := next(plans, None)) is None:
        return
    plans = chain([first], plans)
    ring = ring_size(collators.values(), len(first.positions), options.prefetch, options.ring_bytes)
    buffers = {name: BufferPool(ring, options.read.pinned) for name in collators}
    fetch_threads = options.read.fetch_threads
    pending: deque[tuple[UnfinishedBatch, list[Future[Future[None] | None]]]] = deque()
    decoders = ThreadPoolExecutor(options.threads, thread_name_prefix="data-shards-decode")
    fetchers = ThreadPoolExecutor(fetch_threads or options.threads, thread_name_prefix="data-shards-fetch")
    hanging = False

    def task(batch: UnfinishedBatch, plan: BatchPlan, rows: range) -> Future[None] | None:
        bodies = _fetch(plan, rows, loader)
        if fetch_threads:
            return decoders.submit(_fill, batch, plan, rows, bodies, loader)
        _fill(batch, plan, rows, bodies, loader)
        return None

    def submit_one() -> None:
        if (plan := next(plans, None)) is not None:
            batch = UnfinishedBatch(plan, collators, buffers)
            chunks = _chunks(len(plan.positions), options.threads)
            pending.append((batch, [fetchers.submit(task, batch, plan, rows) for rows in chunks]))

    try:
        for _ in range(ring - 2):
            submit_one()
        while pending:
            unfinished, futures = pending.popleft()
            began = time.perf_counter()
            if hanging := not _finished(futures, began + options.read.stall_s):
                raise loader.stalled()
            batch = unfinished.finished()
            del unfinished
            waited_s = time.perf_counter() - began
            submit_one()
            yield batch, waited_s
            del batch  # so that the pool sees its buffer unused as soon as the consumer drops the batch
    finally:
        fetchers.shutdown(wait=not hanging, cancel_futures=True)
        decoders.shutdown(wait=not hanging, cancel_futures=True)


def _fetch(plan: BatchPlan, rows: range, loader: Loader) -> list[Fetched | None]:
    """The members of the samples `rows` of a batch; None for padding."""
    return [
        loader.fetch(int(plan.shards[i]), int(plan.rows[i])) if plan.positions[i] >= 0 else None for i in rows
    ]


def _fill(
    batch: UnfinishedBatch, plan: BatchPlan, rows: range, fetched: list[Fetched | None], loader: Loader
) -> None:
    """Decode the samples `rows` into their rows of a batch."""
    for i, members in zip(rows, fetched, strict=True):
        example = None
        if members is not None:
            example = loader.decode(members, int(plan.positions[i]), int(plan.shards[i]), int(plan.rows[i]))
        batch.put(i, example)


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
