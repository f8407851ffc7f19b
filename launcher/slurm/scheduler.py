"""Slurm's own commands: sbatch, squeue, scancel."""

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.config.load import ConfigError

DEADLINE_S = 120.0
FORMAT = "%F|%i|%T|%M|%N|%r"  # of squeue
KEPT = ("SLURM_CONF", "SLURM_JWT")  # the rest tells of a job in which the user may sit
DEFAULTS = ("ACCOUNT", "PARTITION", "QOS", "CONSTRAINT", "RESERVATION")  # $SBATCH_...: a user's own defaults


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, that Slurm knows as not yet ended."""

    job: str  # the array's, of a task
    name: str  # 123, or 123_4
    state: str
    time: str  # since it started
    nodes: str
    reason: str

    @property
    def is_running(self) -> bool:
        """Whether its script runs, so that it can be asked to stop."""
        return self.state == "RUNNING"

    def __str__(self) -> str:
        if self.nodes:
            return f"job {self.name}: {self.state} for {self.time} on {self.nodes}"
        return f"job {self.name}: {self.state} ({self.reason})"


def submit(script: Path, given: Collection[str]) -> str:
    """Hand a script to sbatch; returns the number of the job.

    Args:
        script: with its directives in it.
        given: names of directives that it has; $SBATCH_... would win over them and is withheld.

    Raises:
        ConfigError: there is no sbatch, or it refuses.
    """
    output = _call("sbatch", "--parsable", str(script), env=_environment(given))
    return output.strip().splitlines()[-1].split(";")[0]


def queue() -> dict[str, Job]:
    """The jobs of this user, tasks of arrays one by one, by their names."""
    lines = _call(
        "squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={FORMAT}"
    ).splitlines()
    jobs = [Job(*line.split("|", 5)) for line in lines if line.count("|") >= 5]
    return {job.name: job for job in jobs}


def cancel(*arguments: str) -> None:
    """scancel; ConfigError when it refuses."""
    _call("scancel", *arguments)


def has_slurm() -> bool:
    """Whether there is a Slurm to submit to."""
    return shutil.which("sbatch") is not None


def _call(*command: str, env: Mapping[str, str] | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise ConfigError(f"there is no {command[0]} on PATH: this is no login node of a Slurm cluster")
    try:
        done = subprocess.run(
            command,
            env=_environment(()) if env is None else env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} did not answer within {DEADLINE_S:.0f} s; see sinfo") from None
    if done.returncode:
        message = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise ConfigError(message or f"{command[0]} failed with status {done.returncode}")
    return done.stdout


def _environment(given: Collection[str]) -> dict[str, str]:
    """Ours without Slurm's variables, which are options of its commands in disguise."""
    defaults = [f"SBATCH_{name}" for name in DEFAULTS if name.lower() not in given]
    slurm = ("SLURM", "SBATCH_", "SQUEUE_", "SCANCEL_")
    return {n: v for n, v in os.environ.items() if not n.startswith(slurm) or n in (*KEPT, *defaults)}
