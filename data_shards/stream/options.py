"""The options of the streams: how they read, how they run, and which samples an evaluation takes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import DataError


def _check_least(options: dict[str, tuple[int, int]]) -> None:
    """DataError for an option below its least value."""
    for option, (value, least) in options.items():
        if value < least:
            raise DataError(f"{option} ({value}) must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How samples are read from storage. No option changes which samples they are, or how they look.

    `cache` is a directory on a node-local disk ($VARIABLES are expanded). `cache_bytes` is the limit for all
    ranks of the node and all their data sets together. I/O errors are retried for `deadline_s` seconds, which
    must be below the time-out of the collectives. `pinned` None pins memory where there is a GPU.
    """

    cache: str | Path | None = None
    cache_bytes: int = 0
    cache_threads: int = 2  # complete shards that a process fetches at once
    fetch_threads: int = 0  # samples read at once; 0: the decode threads read, best for a warm local disk
    deadline_s: float = 300.0
    pinned: bool | None = None

    def __post_init__(self) -> None:
        _check_least({"fetch_threads": (self.fetch_threads, 0), "cache_threads": (self.cache_threads, 1)})

    @property
    def stall_s(self) -> float:
        """Seconds without a batch after which the file system counts as hanging.

        It exceeds `deadline_s` by at least five seconds, so that a failing source is reported with its reason
        before.
        """
        return self.deadline_s + max(0.5 * self.deadline_s, 5.0)


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream runs on this rank. Only `dp_rank` and `dp_size` change the samples of an intact split.

    `threads` decode, `prefetch` batches are decoded ahead of the consumer: fewer, but one at least, where the
    buffers of their tensors of fixed size would take more than `ring_bytes`, as those of clips may. Bad
    samples are listed in the file `quarantine`. Without it a training stream ends at the first one, and an
    evaluation keeps the list in memory.
    """

    dp_rank: int = 0
    dp_size: int = 1
    threads: int = 2
    prefetch: int = 4
    ring_bytes: int = 2**31
    quarantine: str | Path | None = None
    read: ReadOptions = ReadOptions()

    def __post_init__(self) -> None:
        if not 0 <= self.dp_rank < self.dp_size:
            raise DataError(f"dp_rank ({self.dp_rank}) must be in 0 ... dp_size - 1 ({self.dp_size - 1})")
        least = {"threads": (self.threads, 1), "prefetch": (self.prefetch, 1)}
        _check_least({**least, "ring_bytes": (self.ring_bytes, 1)})


DEFAULT_OPTIONS = StreamOptions()


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalSampling:
    """The samples and the batches of an evaluation; n = samples that it takes.

    `batch_size` is of one rank. `samples` (n,) int64 selects samples, in that order; None takes all of them.
    `shuffle_seed` permutes them, and fills the last batches with the first samples again. `limit` keeps the
    first `limit` of them.
    """

    batch_size: int
    samples: np.ndarray | None = None
    shuffle_seed: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for option, value in {"batch_size": self.batch_size, "limit": self.limit}.items():
            if value is not None:
                _check_least({option: (value, 1)})
