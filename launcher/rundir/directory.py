"""The directory of one run: what lies where, and the lock that keeps a second run out.

config.yaml  metrics.jsonl  summary.json  sessions.jsonl  progress.json  last_words/  quarantine.jsonl
tensorboard/  trackers/  wandb/  profile/  checkpoints/  slurm/  lock
"""

from pathlib import Path

from launcher.config.load import ConfigError
from launcher.rundir.paths import RunFiles
from launcher.rundir.run_lock import RunLock, RunLockedError
from parallel.checkpoint.commit import POINTER, committed


class RunDirectory(RunFiles):
    """Paths of a run. Rank 0 of a run holds its lock from `lock` until the process ends, however it ends."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._lock = RunLock(self.path / "lock")

    def lock(self, *, resume: bool) -> None:
        """Make the directory and take its lock; the system lets go of it when this process dies.

        Args:
            resume: whether the directory may hold an earlier session of the run.

        Raises:
            ConfigError: the directory cannot be written, another run holds it, or it holds an earlier one.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock.take()
        except OSError as error:
            raise ConfigError(
                f"run_dir ({self.path}) cannot be written: {error.strerror}; choose another run_dir"
            ) from error
        except RunLockedError as error:
            raise ConfigError(
                f"run_dir ({self.path}) is in use by {error}; wait for it, or choose another run_dir"
            ) from error
        if not resume and ((self.checkpoints / POINTER).exists() or committed(self.checkpoints)):
            self.unlock()
            raise ConfigError(
                f"run_dir ({self.path}) holds a run already; continue it with --resume auto, or choose "
                "another run_dir"
            )

    def unlock(self) -> None:
        """Let go of the lock."""
        self._lock.release()
