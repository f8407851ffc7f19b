"""A shard cache on node-local disk: complete, verified shards within a hard limit, shared by a node's ranks.

A shard is fetched to `.NAME.tmp`, its size and SHA-256 are checked, it is flushed to the disk and renamed:
NAME is complete or absent. A shard that differs from the manifest's digest twice is kept as `NAME.damaged`:
most of its samples are intact, and each is checked by itself. Limit and locks:
`data_shards.storage.eviction`.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path

from data_shards.errors import DataError
from data_shards.format.index import Manifest, ShardEntry
from data_shards.storage.base import LocalFile, PermanentError, Storage
from data_shards.storage.eviction import NEVER, CacheSpace
from data_shards.storage.retry import FIRST_S, LONGEST_S, Retries
from parallel.durable import is_at, lock_file

SLACK = 1 << 20  # bytes of the limit for lock and announcement files
Notice = Callable[[str, str], None]  # shard, what was seen


class FetchResult(Enum):
    """The result of a fetch; after any other than HERE the shard is not (yet) in the cache."""

    HERE = "here"
    ELSEWHERE = "another process is fetching it"
    NO_SPACE = "everything in the cache is needed sooner or is being read"
    DISK_FULL = "its disk is full or failing"


def least_bytes(manifest: Manifest) -> int:
    """The smallest limit of a cache for a split: its largest shard and some space for lock files."""
    return max(shard.bytes for shard in manifest.shards) + SLACK


class CachedFile(LocalFile):
    """An open cached shard; its shared lock keeps it from being evicted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.damaged = path.suffix == ".damaged"
        lock_file(self.descriptor, shared=True)
        if os.fstat(self.descriptor).st_nlink == 0:  # evicted between opening and locking
            raise FileNotFoundError(path)


class _WriteFailed(Exception):
    """Writing to the cache failed: this is no error of the source, so it is not retried there."""


class ShardCache:
    """The cached shards of one split. Threads and processes may share a directory, not the object's `close`.

    DataError: a limit below one shard, or a directory that cannot be used.
    """

    def __init__(
        self,
        directory: str | Path,
        max_bytes: int,
        storage: Storage,
        manifest: Manifest,
        *,
        retries: Retries,
        notice: Notice = lambda shard, what: None,
    ) -> None:
        if max_bytes < (least := least_bytes(manifest)):
            raise DataError(f"cache_bytes ({max_bytes}) must be at least {least}, one shard and some space")
        expanded = os.path.expandvars(directory)
        if "$" in expanded:
            raise DataError(f"cache {directory}: a variable in it is not set; set it or name a directory")
        self.storage, self.manifest, self.retries = storage, manifest, retries
        self.telemetry, self.notice = retries.telemetry, notice
        self.home = Path(expanded) / manifest.digest[:16]
        self.space = CacheSpace(Path(expanded), max_bytes)
        self._failures: dict[int, str] = {}  # shard -> why the last fetch of it failed
        self.home.mkdir(exist_ok=True)

    def close(self) -> None:
        """Withdraw this process's announcement; the shards stay for the next run."""
        self.space.close()

    def announce(self, shards: list[int]) -> None:
        """Announce which shards this process reads next, soonest first."""
        self.space.announce([f"{self.home.name}/{self.manifest.shards[shard].name}" for shard in shards])

    def open(self, shard: int) -> CachedFile | None:
        """The cached shard, or None; one of the wrong size is removed."""
        entry = self.manifest.shards[shard]
        for name in (entry.name, f"{entry.name}.damaged"):
            with suppress(FileNotFoundError):
                file = CachedFile(self.home / name)
                if file.size == entry.bytes:
                    return file
                self.drop(shard)
        return None

    def drop(self, shard: int) -> None:
        """Remove a damaged copy; a process that has it open can read on."""
        name = self.manifest.shards[shard].name
        for path in (self.home / name, self.home / f"{name}.damaged"):
            path.unlink(missing_ok=True)

    def require(self, shard: int, release: Callable[[], None]) -> CachedFile:
        """The cached shard, fetched now if need be; `release` closes what this process holds open.

        DataError, naming the shard, when it does not arrive within the deadline.
        """
        began, outcome, delay_s = time.monotonic(), FetchResult.HERE, FIRST_S
        while time.monotonic() - began < self.retries.deadline_s and not self.retries.stop.is_set():
            if file := self.open(shard):
                return file
            if (outcome := self.fetch(shard, need=-1)) is not FetchResult.HERE:
                release()
                self.retries.stop.wait(delay_s)
                delay_s = min(2 * delay_s, LONGEST_S / 10)
        if shard in self._failures:
            raise DataError(self._failures[shard])
        what = self.storage.describe(self.manifest.shards[shard].name)
        fix = f"see to the disk of {self.space.root}, or raise the limit ({self.space.max_bytes} bytes)"
        raise DataError(f"{what}: not cached within {self.retries.deadline_s:.0f} s: {outcome.value}; {fix}")

    def fetch(self, shard: int, need: int = NEVER - 1) -> FetchResult:
        """Fetch a shard into the cache unless it is there; `need` is its index in this process's order.

        DataError when the source fails beyond the deadline.
        """
        entry = self.manifest.shards[shard]
        if (self.home / entry.name).exists() or (self.home / f"{entry.name}.damaged").exists():
            return FetchResult.HERE
        temporary, handle = self.home / f".{entry.name}.tmp", None
        try:
            if (handle := _own(temporary)) is None:
                return FetchResult.ELSEWHERE
            outcome = self._fetch(entry, temporary, handle, need)
            self._failures.pop(shard, None)
            return outcome
        except DataError as error:
            self._failures[shard] = str(error)
            raise
        except (OSError, _WriteFailed):  # the source's errors are DataErrors by now
            self.telemetry.add("fetch_failures")
            return FetchResult.DISK_FULL
        finally:
            if handle is not None:
                if is_at(handle, temporary):
                    temporary.unlink(missing_ok=True)
                os.close(handle)

    def _fetch(self, entry: ShardEntry, temporary: Path, handle: int, need: int) -> FetchResult:
        if (self.home / entry.name).exists():
            return FetchResult.HERE
        os.ftruncate(handle, 0)  # what a dead process left does not count
        if not self.space.reserve(handle, entry.bytes, need):
            return FetchResult.NO_SPACE
        intact = self._try_copy(entry, handle)
        if not intact:
            self.telemetry.add("refetches")
            intact = self._try_copy(entry, handle)
        if not intact:
            self.notice(
                entry.name, "SHA-256 differs from the manifest, twice; its samples are checked singly"
            )
        os.fsync(handle)
        os.rename(temporary, self.home / (entry.name if intact else f"{entry.name}.damaged"))
        self.telemetry.add("shards_fetched")
        return FetchResult.HERE

    def _try_copy(self, entry: ShardEntry, handle: int) -> bool:
        return self.retries(lambda: self._copy(entry, handle), lambda: self.storage.describe(entry.name))

    def _copy(self, entry: ShardEntry, handle: int) -> bool:
        """Copy a shard into its temporary; whether its digest is the manifest's. OSError: not its size."""
        digest, done = hashlib.sha256(), 0
        for chunk in self.storage.chunks(entry.name):
            if self.retries.stop.is_set():
                raise InterruptedError(0, "the stream was closed")
            if done + len(chunk) <= entry.bytes:
                _write(handle, chunk, done)
            digest.update(chunk)
            done += len(chunk)
        if done != entry.bytes:
            wrong = PermanentError if self.storage.knows_ends else OSError
            raise wrong(0, f"expected {entry.bytes} bytes, found {done}")
        return digest.hexdigest() == entry.sha256


def _own(temporary: Path) -> int | None:
    """Open a temporary and take its lock, or None while another process or thread has it."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if lock_file(handle, wait=False) and is_at(handle, temporary):  # else it was renamed before that
        return handle
    os.close(handle)
    return None


def _write(handle: int, chunk: bytes, offset: int) -> None:
    try:
        view = memoryview(chunk)
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise _WriteFailed from error
