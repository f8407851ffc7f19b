"""The directory of one run: what lies where, and the lock that keeps a second run out.

config.yaml  metrics.jsonl  summary.json  quarantine.jsonl  tensorboard/  checkpoints/  lock
"""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from launcher.config import ConfigError
from parallel.commit import latest


class RunDirectory:
    """Paths of a run. Rank 0 of a run holds its lock from `lock` until the process ends, however it ends."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.quarantine = self.path / "quarantine.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None

    def lock(self, *, resume: bool) -> None:
        """Make the directory and take its lock; the system lets go of it when this process dies.

        Args:
            resume: whether the directory may hold an earlier session of the run.

        Raises:
            ConfigError: the directory cannot be written, another run holds it, or it holds an earlier one.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise ConfigError(
                f"run_dir ({self.path}) cannot be written: {error.strerror}; choose another run_dir"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ConfigError(
                f"run_dir ({self.path}) is in use by {holder}; wait for it, or choose another run_dir"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        file.flush()
        self._lock = file
        if not resume and latest(self.checkpoints) is not None:
            raise ConfigError(
                f"run_dir ({self.path}) holds a run already; continue it with --resume auto, or choose "
                "another run_dir"
            )

    def unlock(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
