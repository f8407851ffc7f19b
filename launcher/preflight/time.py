"""Preflight of what ends a wait or a job: the collectives' time-out and Slurm's time limit."""

import time
from typing import Any

import torch.distributed as dist

from launcher.config.time_limits import seconds_of
from launcher.preflight.report import ProbeContext, ProbeResults, Verdict
from launcher.process.run_rank import longest_wait
from launcher.rundir.squeue import squeue
from parallel.ranks.discover import job_end_s
from parallel.ranks.identity import slurm_job
from parallel.ranks.init import nccl_settings

SIGNAL_LEAD_S = 120  # --signal=B:USR1@120 of slurm/job.sbatch
SQUEUE_S = 5.0


def probe_timeouts(context: ProbeContext) -> dict[str, Any]:
    """The time-out of the process group, and what the configuration asks for."""
    backend = dist.distributed_c10d._get_default_group()._get_backend(context.device)
    asked_s = longest_wait(context.config).total_seconds() if context.config else None
    settings = nccl_settings() if context.device.type == "cuda" else {}
    return {"group_s": backend.options._timeout.total_seconds(), "asked_s": asked_s, "nccl": settings}


def evaluate_timeouts(results: ProbeResults) -> Verdict:
    """The group's own time-out lies where the watch expects it, and a lost rank ends the others' wait."""
    verdict = Verdict(message=f"{results.values[0]['group_s']:.0f} s of the process group")
    if results.config is not None:
        verdict.message += f", parallel.collective_timeout_s {results.config.parallel.collective_timeout_s:g}"
    verdict.warnings += results.each(map(_other_timeout, results.values))
    for name, value, harm in (
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", "a lost rank would not end the others' wait"),
        ("CUDA_LAUNCH_BLOCKING", "1", "every step is slow"),
    ):
        ranks = [rank for rank, message in enumerate(results.values) if message["nccl"].get(name) == value]
        if ranks:
            verdict.warnings.append(f"{name}={value} on {results.where(ranks)}: {harm}; unset it")
    return verdict


def _other_timeout(value: dict[str, Any]) -> str | None:
    group_s, asked_s = value["group_s"], value["asked_s"]
    if asked_s is None or abs(group_s - asked_s) <= 1:
        return None
    return (
        f"the process group's time-out is {group_s:.0f} s, not {asked_s:.0f} s as "
        "parallel.collective_timeout_s asks for: a hang may end without a name"
    )


def probe_time_limit(context: ProbeContext) -> dict[str, float | None] | None:
    """Seconds that Slurm leaves this job, where there is a limit; rank 0 asks, and only in a job."""
    job = slurm_job()
    if context.ranks.rank != 0 or job is None:
        return None
    end_s = job_end_s()
    return {"left_s": end_s - time.time() if end_s is not None else _left_s(str(job["id"]))}


def _left_s(job: str) -> float | None:
    done = squeue(job, "%L", SQUEUE_S)
    lines = done.stdout.split() if done and done.returncode == 0 else []
    return seconds_of(lines[0], alone_s=1) if lines else None  # None for UNLIMITED and other words


def evaluate_time_limit(results: ProbeResults) -> Verdict:
    """More than the time between the signal and the end."""
    left_s = results.values[0]["left_s"]
    if left_s is None:
        return Verdict(message="none that Slurm tells")
    verdict = Verdict(message=f"{left_s / 60:.0f} min are left")
    if left_s < SIGNAL_LEAD_S:
        verdict.warnings.append(
            f"Slurm ends this job in {left_s:.0f} s, and its signal comes {SIGNAL_LEAD_S} s before the end: "
            "nothing will be trained; ask for more --time"
        )
    return verdict
