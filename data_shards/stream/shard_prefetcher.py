"""Which shards come next, and the threads that bring them into the cache before they are needed."""

import threading
from collections.abc import Iterator

import numpy as np

from data_shards.errors import DataError
from data_shards.storage.cache import Outcome, ShardCache
from data_shards.stream.order import GlobalOrder

EXACT = 4096  # samples whose shards are listed in the exact order of their first use
POLL_S = 1.0  # between two looks at a cache that had no room, or at a shard that another process fetches


def upcoming(order: GlobalOrder, position: int, lanes: np.ndarray, limit: int) -> list[int]:
    """The next shards that `lanes` read from `position` on, soonest first: at most `limit`, each once.

    Looks to the end of the next epoch.
    """
    found: dict[int, None] = {}
    for shards in _in_order(order, position, lanes):
        found |= dict.fromkeys(shards.tolist())
        if len(found) >= min(limit, len(order.samples_per_shard)):
            break
    return list(found)[:limit]


def _in_order(order: GlobalOrder, position: int, lanes: np.ndarray) -> Iterator[np.ndarray]:
    epoch, q = divmod(position, order.num_samples)
    first = q // order.lanes
    ranks = np.arange(first, first + max(1, EXACT // len(lanes)), dtype=np.int64)
    soon = (ranks[:, None] * order.lanes + lanes).ravel()
    yield order.locate(epoch * order.num_samples + soon[soon < order.num_samples])[0]
    windows = (order.num_samples - 1) // (order.lanes * order.window) + 1
    for number in range(first // order.window, 2 * windows):
        for lane in lanes.tolist():
            yield order.window_shards(epoch + number // windows, lane, number % windows)


class Prefetcher:
    """`threads` threads that fetch the announced shards, soonest first, until `close`."""

    def __init__(self, cache: ShardCache, threads: int) -> None:
        self.cache = cache
        self._changed = threading.Condition()
        self._plan: list[int] = []
        self._done: set[int] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"data-shards-cache-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def plan(self, shards: list[int]) -> None:
        """Go on with these shards, soonest first; what is being fetched is finished."""
        self.cache.announce(shards)
        with self._changed:
            self._plan, self._done = shards, set()
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
                task = next(((i, s) for i, s in enumerate(self._plan) if s not in self._done), None)
                if task is None:
                    self._changed.wait(60)
                    continue
                self._done.add(task[1])
                plan = self._plan
            if self._fetch(*task) not in (Outcome.HERE, Outcome.ELSEWHERE):
                stop.wait(POLL_S)
                with self._changed:  # the same place is tried again, before any later one
                    if plan is self._plan:
                        self._done.discard(task[1])

    def _fetch(self, place: int, shard: int) -> Outcome | None:
        try:
            return self.cache.fetch(shard, place)
        except DataError:  # the source fails: the reads that need this shard will say so
            self.cache.telemetry.add("fetch_failures")
            return None
