"""What follows when the step of a Slurm job has ended: python -m launcher.slurm.epilogue RUN --code STATUS

It prints one line, how the session ended and what follows, and ends with 75 where the job is to be requeued,
with 0 where the run is finished, else with the status that the job is to end with. Without torch, for the
batch script waits for it.
"""

import argparse
import contextlib
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.exit_codes import ExitCode
from launcher.rundir.history import all_sessions, append, committed_step, sessions_without_progress
from launcher.rundir.paths import RunFiles
from launcher.rundir.postmortem import BY, Ending, close_last, examine, examine_start
from launcher.rundir.squeue import squeue
from parallel.ranks.identity import slurm_job
from parallel.ranks.variables import LaunchError

DESCRIPTION = "Examine how the session of a Slurm job ended, and decide whether the job is requeued (75)."
REFUSAL = re.compile(r"\w+Error: |swin-moe: error: ")
LEAVING = ("CANCELLED", "COMPLETING", "PREEMPTED", "REQUEUED", "REQUEUE_HOLD")  # Slurm has decided already
ADVICE: dict[int, str] = {
    ExitCode.BUG: "its traceback is in the log",
    ExitCode.USER_ERROR: "correct it and submit again",
    ExitCode.DATA: "repair the data",
    ExitCode.DIVERGED: "lower the learning rate, clip tighter, look at the data",
    ExitCode.OUT_OF_MEMORY: "lower train.micro_batch_size, or raise parallel.zero_stage",
    ExitCode.SAVE_FAILED: "make room",
    ExitCode.CRASH_LOOP: "find the reason, then start with --reset-crashes",
}


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What speaks against a requeue.

    Args:
        cancelled: by whom or what, "" where the job may go on.
        requeues: of the job so far; limit: of them.
        sessions_without_progress: sessions in a row that left no new checkpoint.
        budget: of such sessions; 0 for no limit.
    """

    cancelled: str = ""
    requeues: int = 0
    limit: int = 0
    sessions_without_progress: int = 0
    budget: int = 0


def decide(code: int, now: Circumstances) -> tuple[int, str]:
    """The status to end with (75: requeue) and a line about it, by how the session ended."""
    if code == ExitCode.FINISHED:
        return ExitCode.FINISHED, "nothing follows"
    known = code in list(ExitCode)
    if not known or not ExitCode(code).is_worth_restarting:
        name = ExitCode(code).name if known else f"status {code}"
        return code, f"not requeued: {name}; {ADVICE.get(code, 'see the log')}"
    status = ExitCode.NOT_REQUEUED if code == ExitCode.STOPPED else code
    if now.cancelled:
        return status, f"not requeued: {now.cancelled}; `slurm resume` goes on"
    if now.budget and now.sessions_without_progress >= now.budget:
        why = f"{now.sessions_without_progress} sessions in a row left no new checkpoint"
        return ExitCode.CRASH_LOOP, f"not requeued: {why}; {ADVICE[ExitCode.CRASH_LOOP]}"
    if now.requeues >= now.limit:
        return status, f"not requeued: the limit of {now.limit} requeues; `slurm resume` goes on"
    return ExitCode.STOPPED, f"requeued ({now.requeues + 1} of {now.limit})"


def main(arguments: list[str] | None = None) -> int:
    """Examine, decide and say it; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        return _follow_up(args)
    except LaunchError as error:
        print(f"not requeued: {error}", flush=True)
        return ExitCode.NOT_REQUEUED if args.code == ExitCode.STOPPED else int(args.code)


def _follow_up(args: argparse.Namespace) -> int:
    run = RunFiles(args.run)
    srun_stderr = _text(args.srun_stderr)
    try:
        ending = close_session(run, args.code, srun_stderr)
    except OSError as error:  # the decision stands without the record
        ending = examine(run, args.code, srun_stderr)
        print(f"{run.sessions} cannot be written: {error}", file=sys.stderr)
    if ending.code == ExitCode.USER_ERROR:
        ending = replace(ending, reason=refusal(run))
        with contextlib.suppress(OSError):
            run.refused.write_text(ending.reason + "\n")
    sessions, job = all_sessions(run), slurm_job()
    now = Circumstances(
        cancelled=_cancelled(run, job),
        requeues=int(job["restarts"]) if job else 0,
        limit=args.requeue_limit,
        sessions_without_progress=len(sessions_without_progress(run)),
        budget=next((each["crash_budget"] for each in reversed(sessions) if "crash_budget" in each), 0),
    )
    status, what = decide(ending.code, now)
    if ending.code == ExitCode.STOPPED and "srun: error:" in srun_stderr:
        print("the errors of srun and slurmstepd above are part of a stop on request: the run is saved")
    name = "start refused" if ending.code == ExitCode.USER_ERROR else f"session {len(sessions)} ended"
    print(f"{name}: {ending.reason}; {what}", flush=True)
    return status


def refusal(run: RunFiles) -> str:
    """The last line of the program in the job's log before it ended with status 2."""
    lines = _text(run.log).splitlines()
    return next((line for line in reversed(lines) if REFUSAL.match(line)), "see the log")


def close_session(run: RunFiles, status: int, srun_stderr: str) -> Ending:
    """How this job's session ended, written down where it is not; also of one that never began.

    A session that failed before step 1 for a reason that the user can correct has never been.
    """
    sessions, job = all_sessions(run), slurm_job()
    if sessions and sessions[-1].get("job") == job:
        return close_last(run, status, srun_stderr) or examine(run, status, srun_stderr)
    ending = examine_start(status, srun_stderr)
    if ending.code not in (ExitCode.FINISHED, ExitCode.USER_ERROR, ExitCode.CRASH_LOOP):
        start = {"from_step": committed_step(run), "ranks": None, "pid": None, "job": job}
        append(run, {"event": "start", **start, "by": BY})
        append(run, {"event": "end", "code": ending.code, "reason": ending.reason, "by": BY})
    return ending


def _cancelled(run: RunFiles, job: dict[str, Any] | None) -> str:
    """Why the job is not to be requeued by us, "" where it is; a Slurm that does not answer is none."""
    if run.cancelled.exists():
        return "cancelled on request"
    if job is None:
        return "not in a Slurm job"
    state = job_state(str(job["id"]))
    return f"Slurm ends the job itself ({state})" if state in LEAVING else ""


def job_state(job: str) -> str:
    """Slurm's word for the state of a job, such as RUNNING; "" where it does not answer."""
    done = squeue(job, "%T")
    return next(iter(done.stdout.split()), "") if done and done.returncode == 0 else ""


def _text(path: Path | None) -> str:
    try:
        return path.read_text(errors="replace") if path else ""
    except OSError:
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.slurm.epilogue", description=DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    parser.add_argument("--code", type=int, required=True, help="srun's exit status")
    # Batch scripts that earlier versions submitted, and that Slurm starts again, use the second name.
    parser.add_argument("--srun-stderr", "--said", type=Path, help="srun's standard error")
    parser.add_argument("--requeue-limit", type=int, default=50, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
