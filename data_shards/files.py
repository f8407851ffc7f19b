"""Files that are whole or absent, one writer a directory, and write errors that a user can act on."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.errors import DataError


def atomic_write(path: Path, body: bytes | bytearray) -> None:
    """Write `body` to a temporary beside `path`, flush it to the disk, then give it its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sweep_temporaries(directory: Path) -> None:
    """Remove what an interrupted writer left; only for the holder of `only_writer`."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Make `directory` and hold its lock; DataError when another process is writing there.

    A file system without locks (some Lustre mounts) is taken as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"{directory}: another pack is writing here; wait for it, or pass another --out"
                ) from None
        yield
    finally:
        os.close(handle)


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
