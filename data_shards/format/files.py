"""One writer per directory, and write errors that a user can act on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.errors import DataError
from parallel.durable import lock_file


@contextmanager
def only_writer(directory: Path, shared: bool = False) -> Iterator[None]:
    """Make `directory` and hold its lock; DataError when another process is writing there.

    `shared` writers, the tasks of one pack, exclude others but not each other. A file system without locks
    (some Lustre mounts) excludes nobody.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            if not lock_file(handle, shared=shared, wait=False):
                raise BusyError(
                    f"{directory}: another pack is writing here; wait for it, or pass another --out"
                )
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
