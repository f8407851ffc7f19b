"""The interface of a storage, and the storage that is a directory.

Every failure is an OSError; `data_shards.storage.retry` decides whether to try again.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from data_shards.errors import DataError
from data_shards.format.blocks import BLOCK

REMOTE = ("s3", "gs", "gcs", "http", "https")
SMALL = 16 << 10  # bytes
CHUNK = 4 << 20  # bytes that are read at a time of a complete file


class PermanentError(OSError):
    """A failure that waiting does not repair, so it is not retried."""


class Handle(Protocol):
    """An open file; `size` in bytes. It closes itself when the last reader lets go of it."""

    size: int

    def member(self, offset: int, size: int) -> tuple[bytes, bytes]:
        """The tar header before `offset` (b"" where there is none), and the `size` bytes at `offset`."""

    def forget(self, offset: int, size: int) -> None:
        """Make the next read come from the storage, not from memory, where the system supports it."""


class LocalFile:
    """A file of a mounted file system, read with `pread`."""

    def __init__(self, path: str | Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def member(self, offset: int, size: int) -> tuple[bytes, bytes]:
        """Tar header and bytes, see `Handle.member`; OSError when the file ends before that."""
        if size < SMALL and offset >= BLOCK:  # one system call and a copy cost less than two calls
            both = os.pread(self.descriptor, BLOCK + size, offset - BLOCK)
            header, body = both[:BLOCK], both[BLOCK:]
        else:
            header = os.pread(self.descriptor, BLOCK, offset - BLOCK) if offset >= BLOCK else b""
            body = os.pread(self.descriptor, size, offset)
        if len(body) != size:
            raise OSError(errno.EIO, f"read {len(body)} of {size} bytes")
        return header, body

    def forget(self, offset: int, size: int) -> None:
        """Drop the range from the page cache."""
        with suppress(OSError):
            os.posix_fadvise(self.descriptor, offset, size, os.POSIX_FADV_DONTNEED)


class Storage(ABC):
    """The files of one split by their names.

    `random_access` is whether `open` works, and `needs_cache` is the reason why not. `knows_ends` is whether
    a file is complete where `chunks` ends without an error.
    """

    random_access, knows_ends = True, True
    needs_cache = ""

    @abstractmethod
    def describe(self, name: str) -> str:
        """The path or address of a file, for messages: without passwords or tokens."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """A complete file, in chunks."""

    @abstractmethod
    def open(self, name: str) -> Handle:
        """A file to read anywhere in."""

    def probe(self, name: str) -> None:  # noqa: B027
        """Set `random_access` by a request for a part of `name`, where that is in doubt; OSError."""

    def read(self, name: str) -> bytes:
        """A complete small file."""
        return b"".join(self.chunks(name))


class LocalStorage(Storage):
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def describe(self, name: str) -> str:
        """The path of a file."""
        return str(self.directory / name)

    def chunks(self, name: str) -> Iterator[bytes]:
        """A complete file, in chunks."""
        with open(self.directory / name, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def open(self, name: str) -> Handle:
        """A file to read anywhere in."""
        return LocalFile(self.directory / name)


def check_access(storage: Storage, *, cached: bool) -> None:
    """DataError where samples cannot be read by themselves, and there is no cache for complete shards."""
    if not storage.random_access and not cached:
        raise DataError(f"{storage.describe('*')}: {storage.needs_cache}")


def check_file_name(name: str) -> None:
    """DataError unless `name` is a plain file name: it comes from a manifest and goes into paths."""
    if name in ("", "..") or name.startswith(".") or "/" in name or "\0" in name:
        raise DataError(f"manifest: shard name {name!r} must be a plain file name; correct the manifest")
