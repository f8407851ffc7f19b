"""Random access to the samples of a split: one read per sample, its checksums verified every time.

Only the members that are asked for are read; those that lie side by side in the tar come with one read.

A sample comes from the node's cache where that has its shard, and otherwise straight from the storage. I/O
errors are retried until a deadline. A sample whose checksum differs is read once more from the storage; if it
stays bad, it is a `SampleError`. Every other error is a `DataError`. Both name the shard.
"""

import hashlib
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_shards.errors import DataError
from data_shards.format.fields import files_of, split_name
from data_shards.format.index import MANIFEST_NAME, Manifest, ShardEntry
from data_shards.format.records import record_of
from data_shards.format.tar import BLOCK, CHECKSUM, parse_header
from data_shards.storage import storage_for
from data_shards.storage.base import Handle, LocalStorage, Storage, check_access
from data_shards.storage.cache import CachedFile, ShardCache
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry

OPEN_SHARDS = 256  # two descriptors each, half of the usual limit of 1024
GAP = 16 << 10  # bytes between two members up to which one read of both costs less than two
Range = tuple[str, int, int, int]  # a member: its name, offset, size and xxh3


class SampleError(DataError):
    """One sample is bad, by one of its members, and the rest of its shard may be intact."""

    def __init__(
        self, where: str, shard: str, row: int, key: str, offset: int, reason: str, fix: str, member: str = ""
    ) -> None:
        super().__init__(f"{where}: sample {key} {reason}{fix}")
        self.shard, self.row, self.key, self.member = shard, row, key, member
        self.offset, self.reason = offset, reason

    def fields(self) -> dict[str, Any]:
        """The fields of its line in the quarantine file."""
        return {k: getattr(self, k) for k in ("shard", "row", "key", "member", "offset", "reason")}


class DamagedMemberError(ValueError):
    """A member whose bytes are not those of the index."""

    def __init__(self, member: Range) -> None:
        super().__init__(f"at byte {member[1]} ({member[2]} bytes of {member[0]}) fails its checksum")
        self.member = member


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
        self._record = record_of(manifest.fields)
        self._column = {field.name: i for i, field in enumerate(manifest.fields)}
        self._files = [field.name for field in files_of(manifest.fields)]
        check_access(self.storage, cached=cache is not None)

    def check_members(self, names: Sequence[str]) -> None:
        """DataError for a member that the samples of this split do not have."""
        self.manifest.check_members(names, self.storage.describe(MANIFEST_NAME))

    def read(self, shard: int, row: int, names: Sequence[str] | None = None) -> dict[str, bytes | int]:
        """The members `names` of a sample, all of them for None; SampleError, or DataError for the shard."""
        thread = threading.get_ident()
        self._busy[thread], size = shard, 0
        try:
            opened = self._open(shard)
            record = opened.index.item(row)
            column = self._column
            members = {name: record[column[name]] for name in (column if names is None else names)}
            ranges = [(name, *members[name]) for name in self._files if name in members]
            for span in _spans(ranges) if len(ranges) != 1 else (ranges,):
                bodies = self._from_cache(shard, opened, row, span) if self.cache else None
                if bodies is None:
                    bodies = self._from_source(shard, opened, row, span)
                for member, body in zip(span, bodies, strict=True):
                    members[member[0]] = body
                    size += len(body)
            self.telemetry.add("bytes", size)
            return members
        finally:
            del self._busy[thread]

    def bad_sample(self, shard: int, row: int, reason: str, fix: str = "", member: str = "") -> SampleError:
        """The error that names a sample by path, key and the byte of a member, by default its first file."""
        opened, entry = self._open(shard), self.manifest.shards[shard]
        member = member if member in self._files else self._files[0]
        offset = int(opened.index[row][member]["offset"])
        where, key = self.storage.describe(entry.name), self._key(opened, row)
        return SampleError(where, entry.name, row, key, offset, reason, fix, member)

    def labels(self, shard: int) -> np.ndarray:
        """The labels of a shard: (samples,) int64; DataError where its samples have none."""
        return self.numbers(shard, "label")

    def numbers(self, shard: int, name: str) -> np.ndarray:
        """The values of a number of every sample of a shard: (samples,) int64; no tar is read."""
        self.check_members([name])
        if name in self._files:
            raise DataError(f"{self.storage.describe(MANIFEST_NAME)}: {name} is no number of the index")
        return self._open(shard).index[name].astype(np.int64)

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
        if len(body) != entry.samples * self._record.itemsize:
            held = f"{len(body) / self._record.itemsize:g} samples, the manifest {entry.samples}"
            raise DataError(f"{where}: is not the index in the manifest: it holds {held}{self._fix()}")
        if hashlib.sha256(body).hexdigest() != entry.index_sha256:
            raise DataError(f"{where}: is not the index in the manifest: its SHA-256 differs{self._fix()}")
        return np.frombuffer(body, dtype=self._record)

    def _from_cache(self, shard: int, opened: OpenShard, row: int, span: list[Range]) -> list[bytes] | None:
        """The members from the cached copy, or None: the copy is not there, or was dropped as damaged."""
        assert self.cache
        if (file := opened.cached) is None and (file := self.cache.open(shard)) is None:
            self.telemetry.add("cache_misses")
            return None
        opened.cached = file
        try:
            bodies = self._checked(file, opened, row, span)
        except (OSError, DamagedMemberError):
            opened.cached = None
            self.telemetry.add("refetches")
            if not file.damaged:
                self.cache.drop(shard)
            return None
        self.telemetry.add("cache_hits")
        return bodies

    def _from_source(self, shard: int, opened: OpenShard, row: int, span: list[Range]) -> list[bytes]:
        """The members from the storage, read twice when a checksum differs."""
        read = self._from_storage if self.storage.random_access else self._from_cached_shard
        for attempt in range(2):
            try:
                return read(shard, opened, row, span)
            except DamagedMemberError as error:
                self.telemetry.add("refetches")
                if attempt:
                    raise self.bad_sample(shard, row, str(error), self._fix(), error.member[0]) from error
        raise AssertionError

    def _from_storage(self, shard: int, opened: OpenShard, row: int, span: list[Range]) -> list[bytes]:
        try:
            try:
                file = opened.source or self._reopen(opened)
                return self._checked(file, opened, row, span)
            except OSError:
                self.telemetry.add("retries")
                return self.retries(
                    lambda: self._checked(self._reopen(opened), opened, row, span),
                    lambda: self.storage.describe(opened.entry.name),
                    self._fix,
                )
        except DamagedMemberError as error:
            if opened.source is not None:
                opened.source.forget(*error.member[1:3])
            raise

    def _reopen(self, opened: OpenShard) -> Handle:
        """The shard's file, opened anew: a handle may be stale, and the file behind it another."""
        opened.source = None
        opened.source = self._source(opened.entry)
        return opened.source

    def _from_cached_shard(self, shard: int, opened: OpenShard, row: int, span: list[Range]) -> list[bytes]:
        assert self.cache
        file = self.cache.require(shard, self.close)
        opened.cached = None
        try:
            bodies = self._checked(file, opened, row, span)
        except DamagedMemberError:
            if not file.damaged:
                self.cache.drop(shard)
            raise
        opened.cached = file
        return bodies

    def _source(self, entry: ShardEntry) -> Handle:
        source = self.storage.open(entry.name)
        if source.size != entry.bytes:
            where = self.storage.describe(entry.name)
            raise DataError(f"{where}: expected {entry.bytes} bytes, found {source.size}{self._fix()}")
        return source

    def _checked(self, file: Handle, opened: OpenShard, row: int, span: list[Range]) -> list[bytes]:
        """The members of a span, by one read; DamagedMemberError when they are not those of the index."""
        first = span[0][1]
        header, read = file.member(first, span[-1][1] + span[-1][2] - first)
        bodies = []
        for member in span:
            start = member[1] - first
            body = read[start : start + member[2]]  # all of it, not a copy, where the member is alone
            if xxhash.xxh3_64_intdigest(body) != member[3]:
                raise DamagedMemberError(member)
            if not _is_intact(read[start - BLOCK : start] if start else header):
                self._notice(opened.entry.name, member[1], row)
            bodies.append(body)
        return bodies

    def _notice(self, shard: str, offset: int, row: int) -> None:
        """Report a damaged header once."""
        self.telemetry.add("damaged_headers")
        what = f"damaged tar header at byte {offset - BLOCK}, row {row}; its sample is intact and is used"
        self.notice(shard, what)

    def _key(self, opened: OpenShard, row: int) -> str:
        """The key of a sample, from its tar header; its row when that is damaged or cannot be read."""
        offset = int(opened.index[row][self._files[0]]["offset"])
        try:
            file = opened.cached or opened.source or self._source(opened.entry)
            return split_name(parse_header(file.member(offset, 0)[0])[0])[0]
        except (ValueError, OSError, NotImplementedError):
            return f"in row {row}"

    def _fix(self) -> str:
        if not isinstance(self.storage, LocalStorage):
            return "; see to the source, then resume"
        directory = self.storage.directory
        return f"; see `swin-moe shards verify {directory}`, then `swin-moe shards repair`"


def _spans(ranges: list[Range]) -> list[list[Range]]:
    """The members by their place in the tar, in groups that one read takes."""
    spans: list[list[Range]] = []
    for member in sorted(ranges, key=lambda member: member[1]):
        end = spans[-1][-1][1] + spans[-1][-1][2] if spans else 0
        if spans and 0 <= member[1] - BLOCK - end <= GAP:
            spans[-1].append(member)
        else:
            spans.append([member])
    return spans


def _is_intact(header: bytes) -> bool:
    """Whether a tar header's sum is the one it states; Adler-32's low half is that sum, plus 1, mod 65521."""
    try:
        stated = int((field := header[CHECKSUM]).rstrip(b"\x00 ") or b"0", 8)
    except ValueError:
        return False
    actual = (zlib.adler32(header) & 0xFFFF) - 1 - sum(field) + 8 * ord(" ")
    return (actual - stated) % 65521 == 0
