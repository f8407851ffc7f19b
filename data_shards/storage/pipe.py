"""Shards that a command outputs, `pipe:aws s3 cp s3://b/x/train/{} -`; its exit status counts."""

import errno
import os
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress

from data_shards.errors import DataError
from data_shards.storage.base import CHUNK, Handle, Storage


class PipeStorage(Storage):
    """The output of a shell command, with `{}` replaced by the file's name; complete files only."""

    random_access, knows_ends = False, False  # a command may end early with a status of 0
    needs_cache = "a pipe gives whole shards; it needs a cache: set data.cache and data.cache_gib"

    def __init__(self, command: str, deadline_s: float) -> None:
        if "{}" not in command:
            example = "pipe:aws s3 cp s3://bucket/x/train/{} -"
            raise DataError(f"pipe:{command}: needs {{}} where the file's name goes, as in {example}")
        self.command, self.deadline_s = command, deadline_s

    def describe(self, name: str) -> str:
        """The first word of the command, and the file's name: the rest may hold secrets."""
        return f"pipe:{self.command.split()[0]} ... {name}"

    def chunks(self, name: str) -> Iterator[bytes]:
        """The output of the command; OSError when its status is not 0 or it outlives the deadline."""
        shell = ["bash", "-o", "pipefail", "-c", self.command.replace("{}", shlex.quote(name))]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=errors, start_new_session=True) as process,
        ):
            watchdog = threading.Timer(self.deadline_s, _kill, (process,))
            watchdog.daemon = True
            watchdog.start()
            try:
                assert process.stdout
                while chunk := process.stdout.read(CHUNK):
                    yield chunk
                status = process.wait()
            finally:
                watchdog.cancel()
                _kill(process)
            if status:
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - 300))
                last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise OSError(errno.EIO, f"the command exited with status {status}: {last or 'no message'}")

    def open(self, name: str) -> Handle:
        """Not supported: a command gives complete files."""
        raise NotImplementedError


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the command and everything it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
