"""The lock of a run directory, and whether its holder still lives.

The lock is a `flock`, which the system releases when its holder dies; where a file system does not carry it
from one machine to another, or keeps it for a machine that is gone, the holder's own record decides: host,
process and its start time, Slurm job and how often that was requeued, and as the last resort the age of the
file, which its holder touches.
"""

import json
import logging
import os
import threading
from pathlib import Path
from typing import IO, Any

from launcher.rundir.squeue import squeue
from parallel.durable import is_at, lock_file
from parallel.ranks.identity import identity, is_gone, slurm_job

logger = logging.getLogger(__name__)

TOUCH_S = 20.0
STALE_S = 300.0  # a lock that nobody touched for so long, on another machine, has no holder


class RunLockedError(ValueError):
    """A living process holds it; the message names the holder."""


class RunLock:
    """A lock on one file, held until `release` or the end of the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._released = threading.Event()

    def take(self) -> None:
        """Take the lock.

        Raises:
            RunLockedError: a living process holds it; OSError: it cannot be written.
        """
        file = self.path.open("a+")
        locked = lock_file(file, wait=False)
        owner = _read(file)
        if why := _dead(owner, self.path) if owner else None:
            logger.warning("%s was locked by %s; %s: going on", self.path.parent, _name(owner), why)
        elif not locked or (owner and not _is_me(owner)):
            file.close()
            raise RunLockedError(_name(owner))
        if not locked or not is_at(file, self.path):
            if is_at(file, self.path):  # the file system keeps a lock for a machine that is gone
                os.replace(self.path, self.path.with_suffix(".stale"))
            file.close()
            return self.take()
        _write(file, identity() | {"job": slurm_job()})
        self._file = file
        self._released.clear()
        threading.Thread(target=self._touch, args=(file.fileno(),), daemon=True).start()
        return None

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._released.set()
            _write(self._file, None)
            self._file.close()
            self._file = None

    def _touch(self, descriptor: int) -> None:
        while not self._released.wait(TOUCH_S):
            os.utime(descriptor)


def _is_me(owner: dict[str, Any]) -> bool:
    """Whether the record is of this very process, which did not release it."""
    return identity().items() <= owner.items()


def _read(file: IO[str]) -> dict[str, Any]:
    """The holder's record; empty where there is none, or an unreadable one."""
    file.seek(0)
    try:
        record = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) and {"host", "pid"} <= record.keys() else {}


def _write(file: IO[str], record: dict[str, Any] | None) -> None:
    file.truncate(0)
    if record is not None:
        file.write(json.dumps(record) + "\n")
    file.flush()


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    job = f" (Slurm job {owner['job']['id']})" if owner.get("job") else ""
    return f"process {owner['pid']} on {owner['host']}{job}"


def _dead(owner: dict[str, Any], path: Path) -> str | None:
    """Why the holder is known to be dead, or None where it may live."""
    job, own_job = owner.get("job"), slurm_job()
    if owner["host"] == identity()["host"]:
        return "that process has ended" if is_gone({"start": None, **owner}) else None
    if job and own_job and job["id"] == own_job["id"] and job["restarts"] < own_job["restarts"]:
        return f"this job ({job['id']}) was requeued"
    if job and (state := _job_is_gone(job["id"])) is not None:
        return f"Slurm job {job['id']} has ended" if state else None
    age_s = _age_s(path)
    return f"nobody touched it for {age_s:.0f} s (the lease is {STALE_S:.0f} s)" if age_s > STALE_S else None


def _job_is_gone(job: str) -> bool | None:
    """Whether Slurm knows the job no more; None where Slurm does not answer."""
    if (done := squeue(job, "%T")) is None:
        return None
    if done.returncode:
        return True if "Invalid job id" in done.stderr else None
    return not set(done.stdout.split()) & {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"}


def _age_s(path: Path) -> float:
    """Since the file was touched, by the clock of its own file system."""
    probe = path.with_suffix(f".{os.getpid()}.now")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()
