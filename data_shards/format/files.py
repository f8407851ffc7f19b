"""Files that are whole or absent, one writer a directory, and write errors that a user can act on."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.errors import DataError


@contextmanager
def atomic_file(path: Path) -> Iterator[int]:
    """A file descriptor of a temporary beside `path`, flushed and given its name when the body succeeds.

    When it fails, the temporary is gone. Its name says host and process, so that machines may share a
    directory.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, body: bytes | bytearray) -> None:
    """Write `body` to a temporary beside `path`, flush it to the disk, then give it its name."""
    with atomic_file(path) as handle:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(handle, rest) :]


def sweep_temporaries(directory: Path, mine: Callable[[str], bool] = lambda name: True) -> None:
    """Remove what an interrupted writer left of the files that are `mine`; only while nobody writes those."""
    for path in directory.glob(".*.tmp"):
        if mine(path.name[1:].partition(".")[0]):
            path.unlink(missing_ok=True)


@contextmanager
def only_writer(directory: Path, shared: bool = False) -> Iterator[None]:
    """Make `directory` and hold its lock; DataError when another process is writing there.

    `shared` writers, the tasks of one pack, bear each other but no other kind. A file system without locks
    (some Lustre mounts) is taken as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"{directory}: another pack is writing here; wait for it, or pass another --out"
                ) from None
        yield
    finally:
        os.close(handle)


class BusyError(DataError):
    """Another process is writing in this directory."""


@contextmanager
def write_errors(directory: Path) -> Iterator[None]:
    """Turn an OSError of the body into a DataError that names `directory` and the reason."""
    try:
        yield
    except OSError as error:
        fix = "pass another --out, or see to space and permission and run it again: finished shards are kept"
        raise DataError(
            f"{directory}: cannot write here ({error.strerror}: {error.filename}); {fix}"
        ) from error
