"""Random access to the samples of a split: one read per sample, its checksum verified every time.

A sample comes from the node's cache where that has its shard, and otherwise straight from the storage. I/O
errors are retried until a deadline. A sample whose checksum differs is read once more from the storage; if it
stays bad, it is a `SampleError`. Every other error is a `DataError`. Both name the shard.
"""

import hashlib
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_shards.errors import DataError
from data_shards.format.index import RECORD, Manifest, ShardEntry
from data_shards.format.tar import BLOCK, CHECKSUM, parse_header
from data_shards.storage import storage_for
from data_shards.storage.base import Handle, LocalStorage, Storage, check_access
from data_shards.storage.cache import CachedFile, ShardCache
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry

OPEN_SHARDS = 256  # two descriptors each, half of the usual limit of 1024
Record = tuple[int, int, int, int]  # offset, size, label, xxh3


class SampleError(DataError):
    """One sample is bad, and the rest of its shard may be intact."""

    def __init__(
        self, where: str, shard: str, row: int, key: str, offset: int, reason: str, fix: str
    ) -> None:
        super().__init__(f"{where}: sample {key} {reason}{fix}")
        self.shard, self.row, self.key, self.offset, self.reason = shard, row, key, offset, reason

    def fields(self) -> dict[str, Any]:
        """The fields of its line in the quarantine file."""
        return {k: getattr(self, k) for k in ("shard", "row", "key", "offset", "reason")}


class OpenShard:
    """A shard's verified index, and its files as far as they have been opened."""

    def __init__(self, entry: ShardEntry, index: np.ndarray) -> None:
        self.entry, self.index = entry, index
        self.source: Handle | None = None
        self.cached: CachedFile | None = None


class ShardReader:
    """The samples of a split by (shard, row); threads may share it.

    `storage` is a directory, a URL or a Storage; `notice(shard, what)` is called for damage that affects no
    sample.
    """

    def __init__(
        self,
        storage: str | Path | Storage,
        manifest: Manifest,
        *,
        cache: ShardCache | None = None,
        retries: Retries | None = None,
        notice: Callable[[str, str], None] = lambda shard, what: None,
    ) -> None:
        self.storage, self.manifest, self.cache, self.notice = storage_for(storage), manifest, cache, notice
        self.retries = retries or Retries(300, Telemetry())
        self.telemetry = self.retries.telemetry
        self._open_shards: dict[int, OpenShard] = {}
        self._lock = threading.Lock()
        self._busy: dict[int, int] = {}  # thread -> shard that it reads
        check_access(self.storage, cached=cache is not None)

    def read(self, shard: int, row: int) -> tuple[bytes, int]:
        """The compressed image and the label of a sample; SampleError, or DataError for the shard."""
        thread = threading.get_ident()
        self._busy[thread] = shard
        try:
            opened = self._open(shard)
            record: Record = opened.index.item(row)
            body = self._from_cache(shard, opened, row, record) if self.cache else None
            if body is None:
                body = self._from_source(shard, opened, row, record)
            self.telemetry.add("bytes", len(body))
            return body, record[2]
        finally:
            del self._busy[thread]

    def bad_sample(self, shard: int, row: int, reason: str, fix: str = "") -> SampleError:
        """The error that names one sample by path, key and byte."""
        opened, entry = self._open(shard), self.manifest.shards[shard]
        offset = int(opened.index[row]["offset"])
        where, key = self.storage.describe(entry.name), self._key(opened, row)
        return SampleError(where, entry.name, row, key, offset, reason, fix)

    def labels(self, shard: int) -> np.ndarray:
        """The labels of a shard: (samples,) int64."""
        return self._open(shard).index["label"].astype(np.int64)

    def busy(self) -> list[str]:
        """The shards that threads are reading at this moment."""
        shards = sorted(set(self._busy.copy().values()))
        return [self.storage.describe(self.manifest.shards[shard].name) for shard in shards]

    def close(self) -> None:
        """Close every shard; reading opens them again."""
        with self._lock:
            self._open_shards.clear()

    def _open(self, shard: int) -> OpenShard:
        if (opened := self._open_shards.get(shard)) is None:
            opened = OpenShard(self.manifest.shards[shard], self._index(self.manifest.shards[shard]))
            with self._lock:
                opened = self._open_shards.setdefault(shard, opened)
                if len(self._open_shards) > OPEN_SHARDS:
                    del self._open_shards[next(iter(self._open_shards))]
        return opened

    def _index(self, entry: ShardEntry) -> np.ndarray:
        where = self.storage.describe(entry.index_name)
        body = self.retries(lambda: self.storage.read(entry.index_name), lambda: where, self._fix)
        if len(body) != entry.samples * RECORD.itemsize:
            held = f"{len(body) / RECORD.itemsize:g} samples, the manifest {entry.samples}"
            raise DataError(f"{where}: is not the index in the manifest: it holds {held}{self._fix()}")
        if hashlib.sha256(body).hexdigest() != entry.index_sha256:
            raise DataError(f"{where}: is not the index in the manifest: its SHA-256 differs{self._fix()}")
        return np.frombuffer(body, dtype=RECORD)

    def _from_cache(self, shard: int, opened: OpenShard, row: int, record: Record) -> bytes | None:
        """The sample from the cached copy, or None: the copy is not there, or was dropped as damaged."""
        assert self.cache
        if (file := opened.cached) is None and (file := self.cache.open(shard)) is None:
            self.telemetry.add("cache_misses")
            return None
        opened.cached = file
        try:
            body = self._checked(file, opened, row, record)
        except OSError:
            body = None
        if body is None:
            opened.cached = None
            self.telemetry.add("refetches")
            if not file.damaged:
                self.cache.drop(shard)
            return None
        self.telemetry.add("cache_hits")
        return body

    def _from_source(self, shard: int, opened: OpenShard, row: int, record: Record) -> bytes:
        """The sample from the storage, read twice when its checksum differs."""
        read = self._from_storage if self.storage.random_access else self._from_cached_shard
        for _ in range(2):
            if (body := read(shard, opened, row, record)) is not None:
                return body
            self.telemetry.add("refetches")
        reason = f"at byte {record[0]} ({record[1]} bytes) fails its checksum"
        raise self.bad_sample(shard, row, reason, self._fix())

    def _from_storage(self, shard: int, opened: OpenShard, row: int, record: Record) -> bytes | None:
        try:
            file = opened.source or self._reopen(opened)
            body = self._checked(file, opened, row, record)
        except OSError:
            self.telemetry.add("retries")
            body = self.retries(
                lambda: self._checked(self._reopen(opened), opened, row, record),
                lambda: self.storage.describe(opened.entry.name),
                self._fix,
            )
        if body is None and opened.source is not None:
            opened.source.forget(record[0], record[1])
        return body

    def _reopen(self, opened: OpenShard) -> Handle:
        """The shard's file, opened anew: a handle may be stale, and the file behind it another."""
        opened.source = None
        opened.source = self._source(opened.entry)
        return opened.source

    def _from_cached_shard(self, shard: int, opened: OpenShard, row: int, record: Record) -> bytes | None:
        assert self.cache
        file = self.cache.require(shard, self.close)
        body = self._checked(file, opened, row, record)
        if body is None and not file.damaged:
            self.cache.drop(shard)
        opened.cached = file if body is not None else None
        return body

    def _source(self, entry: ShardEntry) -> Handle:
        source = self.storage.open(entry.name)
        if source.size != entry.bytes:
            where = self.storage.describe(entry.name)
            raise DataError(f"{where}: expected {entry.bytes} bytes, found {source.size}{self._fix()}")
        return source

    def _checked(self, file: Handle, opened: OpenShard, row: int, record: Record) -> bytes | None:
        """The sample's bytes, or None when they are not the index's."""
        header, body = file.member(record[0], record[1])
        if xxhash.xxh3_64_intdigest(body) != record[3]:
            return None
        if not _is_intact(header):
            self.telemetry.add("damaged_headers")
            what = (
                f"damaged tar header at byte {record[0] - BLOCK}, row {row}; its sample is intact and is used"
            )
            self.notice(opened.entry.name, what)
        return body

    def _key(self, opened: OpenShard, row: int) -> str:
        """The key of a sample, from its tar header; its row when that is damaged or cannot be read."""
        offset = int(opened.index[row]["offset"])
        try:
            file = opened.cached or opened.source or self._source(opened.entry)
            return parse_header(file.member(offset, 0)[0])[0].rpartition(".")[0]
        except (ValueError, OSError, NotImplementedError):
            return f"in row {row}"

    def _fix(self) -> str:
        if not isinstance(self.storage, LocalStorage):
            return "; see to the source, then resume"
        directory = self.storage.directory
        return f"; see `swin-moe shards verify {directory}`, then `swin-moe shards repair`"


def _is_intact(header: bytes) -> bool:
    """Whether a tar header's sum is the one it states; Adler-32's low half is that sum, plus 1, mod 65521."""
    try:
        stated = int((field := header[CHECKSUM]).rstrip(b"\x00 ") or b"0", 8)
    except ValueError:
        return False
    actual = (zlib.adler32(header) & 0xFFFF) - 1 - sum(field) + 8 * ord(" ")
    return (actual - stated) % 65521 == 0
