"""Files that are complete or absent, and locks between processes; no torch.

A file is written as `.NAME.HOST.PID.tmp` beside its place and renamed, so that a reader finds the old file or
the new one and several machines may share a directory. `sync` chooses what survives a power loss.
"""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

# What is flushed to the disk: nothing, so that a power loss may leave an empty or an old file; the file, so
# that it is complete or old; the file and its directory, so that it is there once the writer goes on.
Sync = Literal["none", "file", "directory"]


@contextmanager
def atomic_file(path: Path, sync: Sync = "file") -> Iterator[int]:
    """Give a file descriptor of a temporary, which gets the name `path` when the body succeeds.

    When the body fails, the temporary is removed and a file that was there stays.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield handle
            if sync != "none":
                os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync == "directory":
        sync_directory(path.parent)


def atomic_write(path: Path, body: bytes | bytearray | str, sync: Sync = "file") -> None:
    """Write a complete file; a str is encoded in UTF-8.

    Raises:
        OSError: it cannot be written; a file that was there stays.
    """
    with atomic_file(path, sync) as handle:
        rest = memoryview(body.encode() if isinstance(body, str) else body)
        while rest:
            rest = rest[os.write(handle, rest) :]


def sweep_temporaries(directory: Path, is_own: Callable[[str], bool] = lambda name: True) -> None:
    """Remove what killed writers left of files; only while nobody writes those.

    Args:
        directory: of the files.
        is_own: whether to remove the temporaries of a file, by its name up to the first dot.
    """
    for path in directory.glob(".*.tmp"):
        if is_own(path.name[1:].partition(".")[0]):
            path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(file: int | IO[str], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file (`flock`) until it is closed or its process ends.

    Args:
        file: a file or its descriptor.
        shared: allow other shared locks.
        wait: until the lock is free.

    Returns:
        Whether the lock was taken; False where somebody holds it and `wait` is not set.

    Raises:
        OSError: the file system has no locks, as some Lustre mounts.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def is_at(file: int | IO[str], path: Path) -> bool:
    """Whether an open file is still the one at `path`, and was neither removed nor replaced."""
    descriptor = file if isinstance(file, int) else file.fileno()
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
