"""Batches decoded ahead of their consumer by threads, in order, the same for any number of threads.

No worker processes: decoding and resizing release the GIL, so nothing is pickled and no shared memory can go
stale. B = samples in the batch, H, W = image height and width in pixels.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

CHUNK = (
    16  # samples a task at most: small enough to keep threads busy at a batch's end, large enough to be cheap
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of one rank.

    images (B, 3, H, W) uint8; labels (B,) int64; positions (B,) int64, the key of every random draw of a
    sample: its position in the training stream, or its index in evaluation, -1 for padding; weights (B,)
    float32, 0 for padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The samples of a batch: positions, shards and rows, each (B,) int64; position -1 is padding."""

    positions: np.ndarray
    shards: np.ndarray
    rows: np.ndarray


Load = Callable[[int, int, int], tuple[np.ndarray, int]]  # position, shard, row -> picture (3, H, W), label


def empty_batch(plan: BatchPlan, image_size: int) -> Batch:
    """A batch whose images and labels are still zero; positions and weights are final."""
    size = len(plan.positions)
    return Batch(
        images=torch.from_numpy(np.zeros((size, 3, image_size, image_size), dtype=np.uint8)),
        labels=torch.from_numpy(np.zeros(size, dtype=np.int64)),
        positions=torch.from_numpy(plan.positions.copy()),
        weights=torch.from_numpy((plan.positions >= 0).astype(np.float32)),
    )


def fill(batch: Batch, plan: BatchPlan, rows: range, load: Load) -> None:
    """Load the samples `rows` of a batch into their places."""
    images, labels = batch.images.numpy(), batch.labels.numpy()
    for i in rows:
        if plan.positions[i] >= 0:
            images[i], labels[i] = load(int(plan.positions[i]), int(plan.shards[i]), int(plan.rows[i]))


def prefetched(
    plans: Iterator[BatchPlan], load: Load, *, image_size: int, threads: int, depth: int
) -> Generator[tuple[Batch, float], None, None]:
    """The batches of `plans` in order, each with the seconds that the consumer waited for it.

    At most `depth` batches are decoded ahead. Closing the generator joins its threads; an error in `load` is
    raised at the batch it belongs to.
    """
    pending: deque[tuple[Batch, list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data-shards")

    def submit_one() -> None:
        if (plan := next(plans, None)) is not None:
            batch = empty_batch(plan, image_size)
            chunks = _chunks(len(plan.positions), threads)
            pending.append((batch, [pool.submit(fill, batch, plan, rows, load) for rows in chunks]))

    try:
        for _ in range(depth):
            submit_one()
        while pending:
            batch, futures = pending.popleft()
            began = time.perf_counter()
            for future in futures:
                future.result()
            waited_s = time.perf_counter() - began
            submit_one()
            yield batch, waited_s
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(size: int, threads: int) -> list[range]:
    step = max(1, min(CHUNK, -(-size // threads)))
    return [range(start, min(start + step, size)) for start in range(0, size, step)]
