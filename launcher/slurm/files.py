"""RUN/slurm/: what a submission leaves beside the run, written all or not at all.

job.sbatch  environment.sh  config.yaml  submission.json  jobs.jsonl  log.txt  srun-said.txt
srun-said-before.txt (of the start before)  cancelled
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.config.load import ConfigError
from launcher.rundir.directory import RunDirectory
from launcher.rundir.paths import RunFiles


class SlurmFiles:
    """Paths below a run directory."""

    def __init__(self, run: Path) -> None:
        files = RunFiles(run)
        self.run, self.directory, self.log, self.cancelled = run, files.slurm, files.log, files.cancelled
        self.script = self.directory / "job.sbatch"
        self.environment = self.directory / "environment.sh"
        self.config = self.directory / "config.yaml"
        self.submission = self.directory / "submission.json"
        self.jobs = self.directory / "jobs.jsonl"

    def record(self, job: str, nodes: str, tasks: Sequence[int]) -> None:
        """Write down that a job was submitted; `tasks` are those of an array."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with self.jobs.open("a") as file:
            file.write(json.dumps({"job": job, "time": now, "nodes": nodes, "tasks": list(tasks)}) + "\n")

    def submitted(self) -> list["Submitted"]:
        """Every submission so far, the oldest first."""
        lines = self.jobs.read_text().splitlines() if self.jobs.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]  # not one cut short by a kill
        return [Submitted(job=one["job"], tasks=tuple(one["tasks"])) for one in records]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job as Slurm numbered it, and which tasks of an array it has."""

    job: str
    tasks: tuple[int, ...]


class Changes:
    """Files written, and how to have it all as it was before."""

    def __init__(self) -> None:
        self._before: dict[Path, tuple[bytes, int] | None] = {}
        self._made: list[Path] = []

    def directory(self, path: Path) -> None:
        """Make a directory and what is missing above it."""
        missing = [above for above in (path, *path.parents) if not above.exists()]
        path.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)

    def write(self, path: Path, text: str, mode: int = 0o644) -> None:
        """Write a file, never readable to more users than `mode` says."""
        self._remember(path)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)

    def remove(self, path: Path) -> None:
        """Remove a file that may be there."""
        self._remember(path)
        path.unlink(missing_ok=True)

    def undo(self) -> None:
        """Every file as it was; directories go if nothing else has come into them."""
        for path, before in self._before.items():
            path.unlink(missing_ok=True)
            if before is not None:
                path.write_bytes(before[0])
                path.chmod(before[1])
        for directory in reversed(self._made):
            with suppress(OSError):
                directory.rmdir()

    def _remember(self, path: Path) -> None:
        kept = (path.read_bytes(), path.stat().st_mode) if path.exists() else None
        self._before.setdefault(path, kept)


@contextmanager
def changing(run: RunDirectory) -> Iterator[Changes]:
    """Hold the lock of a run directory and change files below it; an error leaves all as it was.

    Raises:
        ConfigError: the directory is in use, or cannot be written.
    """
    changes = Changes()
    fresh = not (run.path / "lock").exists()
    try:
        changes.directory(run.checkpoints)
        with _locked(run):
            yield changes
    except BaseException as error:
        if fresh:
            (run.path / "lock").unlink(missing_ok=True)
        changes.undo()
        if isinstance(error, OSError):
            raise ConfigError(f"{error.filename or run.path} cannot be written: {error.strerror}") from error
        raise


@contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    run.lock(resume=True)
    try:
        yield
    finally:
        with suppress(OSError):
            run.checkpoints.rmdir()  # an empty one, which the lock made; above an array there is none
        run.unlock()
