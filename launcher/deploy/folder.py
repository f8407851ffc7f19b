"""The folder of an artifact while it is made: it gets its name at the end, or nothing is left.

Until then it is called `.NAME.HOST.PID.tmp`, and the process that makes it holds a lock on it.
"""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from launcher.deploy.card import ArtifactError
from parallel.durable import lock_file

ENDING = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C is an exception already


@contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which is removed afterwards unless it was renamed, after SIGTERM too.

    Those that killed processes of this machine left beside `out` are removed first.

    Args:
        out: the place of the artifact.

    Raises:
        ArtifactError: it cannot be written.
        SystemExit: on SIGTERM or SIGHUP in the body, with the status 128 + its number.
    """
    remove_stale(out.parent)
    folder = out.with_name(f".{out.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with _ended_by_exception():
        handle = _made(folder, out)
        try:
            yield folder
        finally:
            os.close(handle)
            shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path, out: Path) -> int:
    """Make a folder: its descriptor, which holds a lock on it until it is closed."""
    try:
        folder.mkdir(parents=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"--out {out} cannot be written: {error.strerror}") from error
    _is_locked(handle)
    return handle


def remove_stale(directory: Path) -> None:
    """Remove the folders of artifacts that processes of this machine did not finish before they died."""
    for folder in directory.glob(f".*.{socket.gethostname()}.*.tmp"):
        process = folder.name.split(".")[-2]
        if process.isdecimal() and folder.is_dir() and not _is_alive(int(process)) and _is_free(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    """Whether this machine has another process of this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_free(folder: Path) -> bool:
    """Whether no process holds the lock: one of another container may, whose number says nothing here."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _is_locked(handle)
    finally:
        os.close(handle)


def _is_locked(handle: int) -> bool:
    """Lock a folder until it is closed; also True on file systems without locks."""
    try:
        return lock_file(handle, wait=False)
    except OSError:
        return True


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Let the signals that end a process raise SystemExit meanwhile.

    Signals for which the process has a handler of its own stay as they are, and so do all in other threads
    than the main one, which alone may set handlers.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)
