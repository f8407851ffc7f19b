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
REASONS = {  # why a job waits: squeue(1), JOB REASON CODES
    "BeginTime": "it was requeued, or is to start later; Slurm waits a while before it starts it again",
    "Dependency": "it waits for another job",
    "JobArrayTaskLimit": "as many tasks of the array run as --array-limit allows",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is held: scontrol release",
    "PartitionConfig": "the partition can never start it: too many nodes, or --time above its limit",
    "PartitionNodeLimit": "it wants more nodes than the partition allows",
    "PartitionTimeLimit": "--time is above the limit of the partition",
    "Priority": "jobs of higher priority wait before it",
    "QOSMaxJobsPerUserLimit": "as many jobs of yours run as the QOS allows",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "Resources": "it waits for nodes to become free",
}
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
        meaning = f": {REASONS[self.reason]}" if self.reason in REASONS else ""
        return f"job {self.name}: {self.state} ({self.reason}{meaning})"


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


def nodes_in(partition: str | None) -> int | None:
    """Nodes of a partition, or of the default one, whatever their state; None where sinfo does not say.

    Args:
        partition: its name, or several with commas; None is the default of the cluster.
    """
    chosen = [f"--partition={partition}"] if partition else []
    try:
        lines = _call("sinfo", "--noheader", "--format=%P|%D", *chosen).splitlines()
    except ConfigError:
        return None
    rows = [line.split("|") for line in lines if line.count("|") == 1]
    counts = [int(count) for name, count in rows if count.isdecimal() and (partition or name.endswith("*"))]
    return max(counts, default=None)


def final_state(job: str) -> str:
    """What the accounting says of a job that has left the queue, such as COMPLETED after 00:01:20, or ""."""
    try:
        output = _call(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,Elapsed"
        )
    except ConfigError:  # not every cluster keeps accounts
        return ""
    lines = [line for line in output.splitlines() if line.count("|") == 1]
    return " after ".join(lines[-1].split("|")) if lines else ""


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
    slurm = ("SLURM", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "SACCT_")
    return {n: v for n, v in os.environ.items() if not n.startswith(slurm) or n in (*KEPT, *defaults)}
