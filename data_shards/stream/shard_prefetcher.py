"""The shards that a rank reads next, and the threads that fetch them into the cache in advance."""

import threading
from collections.abc import Iterator

import numpy as np

from data_shards.errors import DataError
from data_shards.order.global_order import GlobalOrder
from data_shards.storage.cache import FetchResult, ShardCache

EXACT = 4096  # samples whose shards are listed in the exact order of their first use
POLL_S = 1.0  # between two tries of a shard for which the cache had no space, or that another process fetches


def lookahead(
    order: GlobalOrder, position: int, segments: np.ndarray, limit: int, exact: int = EXACT
) -> list[int]:
    """The next shards that `segments` read from `position` on, soonest first: at most `limit`, each once.

    It ends with the next epoch. The shards of the first `exact` samples are in the exact order of use.
    """
    shards: dict[int, None] = {}
    for group in _in_order(order, position, segments, exact):
        shards |= dict.fromkeys(group.tolist())
        if len(shards) >= min(limit, len(order.samples_per_shard)):
            break
    return list(shards)[:limit]


def _in_order(order: GlobalOrder, position: int, segments: np.ndarray, exact: int) -> Iterator[np.ndarray]:
    epoch, q = divmod(position, order.num_samples)
    first = q // order.interleave
    ranks = np.arange(first, first + max(1, exact // len(segments)), dtype=np.int64)
    soon = (ranks[:, None] * order.interleave + segments).ravel()
    yield order.locate(epoch * order.num_samples + soon[soon < order.num_samples])[0]
    buffers = (order.num_samples - 1) // (order.interleave * order.shuffle_buffer) + 1
    for number in range(first // order.shuffle_buffer, 2 * buffers):
        for segment in segments.tolist():
            yield order.buffer_shards(epoch + number // buffers, segment, number % buffers)


class ShardPrefetcher:
    """`threads` threads that fetch the announced shards, soonest first, until `close`."""

    def __init__(self, cache: ShardCache, threads: int) -> None:
        self.cache = cache
        self._changed = threading.Condition()
        self._shards: list[int] = []
        self._taken: set[int] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"data-shards-cache-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def announce(self, shards: list[int]) -> None:
        """Fetch these shards next, soonest first; fetches under way are finished."""
        self.cache.announce(shards)
        with self._changed:
            self._shards, self._taken = shards, set()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop and join the threads; a shard half fetched is given up."""
        self.cache.retries.stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        stop = self.cache.retries.stop
        while not stop.is_set():
            with self._changed:
                task = next(((i, s) for i, s in enumerate(self._shards) if s not in self._taken), None)
                if task is None:
                    self._changed.wait(60)
                    continue
                self._taken.add(task[1])
                shards = self._shards
            if self._fetch(*task) not in (FetchResult.HERE, FetchResult.ELSEWHERE):
                stop.wait(POLL_S)
                with self._changed:  # try the same shard again, before any later one
                    if shards is self._shards:
                        self._taken.discard(task[1])

    def _fetch(self, index: int, shard: int) -> FetchResult | None:
        try:
            return self.cache.fetch(shard, index)
        except DataError:  # the source fails: the reads that need this shard report it
            self.cache.telemetry.add("fetch_failures")
            return None
