"""Random access to the samples of a split: one `pread` a sample, its checksum verified every time."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import xxhash

from data_shards.errors import DataError
from data_shards.index import Manifest, ShardEntry, read_index
from data_shards.tar import BLOCK, parse_header

OPEN_SHARDS = 256  # two descriptors each, half of the usual limit of 1024


class ShardFile:
    """An open shard with its memory-mapped index; closes itself when the last reader lets go of it.

    DataError when either file is missing, of another size, or the index is not the manifest's.
    """

    def __init__(self, directory: Path, entry: ShardEntry) -> None:
        self.path = directory / entry.name
        index = read_index(directory / entry.index_name)
        if len(index) != entry.samples or hashlib.sha256(index.data).hexdigest() != entry.index_sha256:
            raise DataError(
                f"{directory / entry.index_name}: is not the index in the manifest; {_fix(directory)}"
            )
        self.index = index
        try:
            self.handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; {_fix(directory)}") from error
        found = os.fstat(self.handle).st_size
        if found != entry.bytes:
            raise DataError(f"{self.path}: expected {entry.bytes} bytes, found {found}; {_fix(directory)}")

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)

    def read(self, row: int) -> tuple[bytes, int]:
        """The compressed image and the label of sample `row`; a DataError names shard, key and offset."""
        offset, size, label, checksum = self.index[row].item()
        try:
            body = os.pread(self.handle, size, offset)
        except OSError as error:
            raise DataError(f"{self.path}: cannot read at byte {offset} ({error.strerror})") from error
        if xxhash.xxh3_64_intdigest(body) != checksum:
            what = f"sample {self.key(row)} at byte {offset} ({size} bytes) fails its checksum"
            raise DataError(f"{self.path}: {what}; {_fix(self.path.parent)}")
        return body, label

    def key(self, row: int) -> str:
        """The key of sample `row`, from its tar header; its row when that is damaged too."""
        offset = int(self.index[row]["offset"])
        try:
            return parse_header(os.pread(self.handle, BLOCK, offset - BLOCK))[0].rpartition(".")[0]
        except ValueError:
            return f"in row {row}"


def _fix(directory: Path) -> str:
    return f"see `swin-moe shards verify {directory}`, then delete that shard and pack again"


class ShardReader:
    """The samples of a split by (shard, row), at most OPEN_SHARDS of them open; threads may share it."""

    def __init__(self, directory: str | Path, manifest: Manifest) -> None:
        self.directory, self.manifest = Path(directory), manifest
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    def read(self, shard: int, row: int) -> tuple[bytes, int]:
        """The compressed image and the label of one sample; DataError as `ShardFile.read`."""
        return self._shard(shard).read(row)

    def describe(self, shard: int, row: int) -> str:
        """The path and the key of one sample, for messages."""
        file = self._shard(shard)
        return f"{file.path}: sample {file.key(row)}"

    def close(self) -> None:
        """Close every shard."""
        self._shard.cache_clear()

    def _open(self, shard: int) -> ShardFile:
        return ShardFile(self.directory, self.manifest.shards[shard])
