"""The counters of a stream: its threads add to them, its consumer takes them once per step."""

import threading
import time

COUNTERS = (
    "images",  # handed to the consumer, padding not counted
    "bytes",  # compressed bytes of the samples read
    "cache_hits",  # samples read from the node-local cache
    "cache_misses",  # samples read from the source although there is a cache
    "shards_fetched",  # complete shards that this process fetched into the cache
    "fetch_failures",  # shard fetches given up: disk full, source failing; reads go to the source
    "retries",  # I/O errors that were retried
    "refetches",  # reads and fetches whose checksum or digest did not agree
    "damaged_headers",  # damaged tar headers of intact samples
    "bad_samples",  # bad samples that this process met first
    "replaced",  # positions at which a bad sample was replaced (training) or weighed 0 (evaluation)
)


class Telemetry:
    """Counters that threads add to; every number is a sum since the stream was made or since `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals, self._taken = (dict.fromkeys(COUNTERS, 0) for _ in range(2))
        self._wait_s, self._since_s = 0.0, time.monotonic()

    def add(self, counter: str, count: int = 1) -> None:
        """Add `count` to one of COUNTERS."""
        with self._lock:
            self._totals[counter] += count

    def waited(self, seconds: float) -> None:
        """Add to the time that the consumer waited for a batch."""
        with self._lock:
            self._wait_s += seconds

    def totals(self) -> dict[str, int]:
        """Every counter since the stream was made."""
        with self._lock:
            return dict(self._totals)

    def take(self) -> dict[str, float]:
        """Every counter since the last `take`, and `seconds`, `wait_s`, `wait_share`, `images_s`."""
        with self._lock:
            now = time.monotonic()
            seconds, wait_s = max(now - self._since_s, 1e-9), self._wait_s
            taken: dict[str, float] = {k: self._totals[k] - self._taken[k] for k in COUNTERS}
            self._taken, self._wait_s, self._since_s = dict(self._totals), 0.0, now
        taken |= {"seconds": seconds, "wait_s": wait_s, "wait_share": min(1.0, wait_s / seconds)}
        return taken | {"images_s": taken["images"] / seconds}
