"""`swin-moe slurm status | logs | cancel`: what becomes of a submitted run."""

import argparse
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from launcher.config.load import ConfigError
from launcher.console.columns import aligned
from launcher.rundir.directory import RunDirectory
from launcher.slurm import scheduler, status
from launcher.slurm.files import SlurmFiles
from launcher.slurm.queued import jobs_alive, task_directories
from launcher.slurm.quoting import word
from launcher.slurm.submission import Submission, read_submission

logger = logging.getLogger(__name__)

POLL_S = 0.5
QUEUE_S = 10.0  # between two questions to Slurm


def show_status(args: argparse.Namespace, _: list[str]) -> int:
    """`swin-moe slurm status`: what Slurm says, and what the run says."""
    files, submission = _find(args.run_directory)
    try:
        jobs = {job.name: job for job in jobs_alive(files)}
    except ConfigError as error:  # the run can be described without Slurm
        jobs = {}
        logger.warning("the queue is not known: %s", error)
    args.answer = _as_json(files, submission, jobs)
    if submission.tasks:
        print("\n".join(_table(files, submission, jobs)))
    else:
        newest = files.submitted()[-1].job
        print(jobs.get(newest) or f"job {newest}: {scheduler.final_state(newest) or 'not in the queue'}")
        print(status.describe(RunDirectory(files.run)))
    return 0


def show_list(args: argparse.Namespace, _: list[str]) -> int:
    """`swin-moe slurm list`: every submitted run below a directory, a line each."""
    found = sorted(args.directory.glob("*/slurm/submission.json"))
    try:
        jobs = scheduler.queue() if found else {}
    except ConfigError as error:
        jobs = {}
        logger.warning("the queue is not known: %s", error)
    rows = [("run", "job", "queue", "state", "step", "result")]
    for file in found:
        files = SlurmFiles(file.parents[1])
        submission, names = read_submission(files.submission), [one.job for one in files.submitted()]
        alive = [job for job in jobs.values() if job.job in names]
        state = _row(files.run, submission)
        rows.append((str(files.run), (names or ["-"])[-1], _queued(alive[0] if alive else None), *state))
    args.answer = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    print("\n".join(aligned(rows)) if found else f"{args.directory}: no run here was submitted to Slurm")
    return 0


def _row(run: Path, submission: Submission) -> tuple[str, str, str]:
    """State, step and result of a run; of an array, how many tasks are in each state."""
    if submission.tasks:
        runs = task_directories(run, submission)
        states = Counter(_state(status.as_json(RunDirectory(task)))[0] for task in runs)
        return ", ".join(f"{count} {state}" for state, count in states.items()), "-", "-"
    found = status.as_json(RunDirectory(run))
    return _state(found)[0], str(found["step"] or 0), _result(found)


def show_log(args: argparse.Namespace, _: list[str]) -> int:
    """`swin-moe slurm logs`: the end of the log; with --follow what comes until the job leaves the queue."""
    files, submission = _find(args.run_directory)
    log = SlurmFiles(_task(files, submission, args.task)).log
    if not log.exists():
        raise ConfigError(f"no {log} yet: the job has not started; swin-moe slurm status {files.run}")
    with log.open(errors="replace") as file:
        sys.stdout.writelines(deque(file, args.lines))
        if args.follow:
            _follow(file, lambda: bool(jobs_alive(files)))
    return 0


def cancel(args: argparse.Namespace, _: list[str]) -> int:
    """`swin-moe slurm cancel`: what waits goes; what runs is saved first, unless --now."""
    files, submission = _find(args.run_directory)
    jobs = jobs_alive(files)
    if not jobs:
        raise ConfigError(f"{files.run} has no job in the queue")
    for run in task_directories(files.run, submission):
        SlurmFiles(run).cancelled.touch()
    args.answer = {"run": files.run, "jobs": [], "resume": f"swin-moe slurm resume {word(files.run)}"}
    for job in jobs:
        is_asked = job.is_running and not args.now
        args.answer["jobs"].append({"job": job.name, "action": "stops, saved" if is_asked else "cancelled"})
        if is_asked:
            scheduler.cancel("--batch", "--signal=USR1", job.name)
            print(f"job {job.name}: asked to save and stop; it will not be requeued")
        else:
            scheduler.cancel(job.name)
            print(f"job {job.name}: cancelled")
    print(f"to go on: swin-moe slurm resume {word(files.run)}")
    return 0


def _find(run: Path) -> tuple[SlurmFiles, Submission]:
    files = SlurmFiles(Path(os.path.abspath(run)))
    submission = read_submission(files.submission)
    if not files.submitted():
        raise ConfigError(f"{files.run} was never submitted: no job in {files.jobs}")
    return files, submission


def _task(files: SlurmFiles, submission: Submission, task: int | None) -> Path:
    runs = task_directories(files.run, submission)
    if submission.tasks and task is None:
        raise ConfigError(f"{files.run} is an array: name one of its tasks, --task 0 to {len(runs) - 1}")
    if not 0 <= (index := task or 0) < len(runs):
        raise ConfigError(f"--task ({index}) must lie in 0 to {len(runs) - 1}")
    return runs[index]


def _as_json(files: SlurmFiles, submission: Submission, jobs: dict[str, scheduler.Job]) -> dict[str, Any]:
    runs = task_directories(files.run, submission)
    names = _names(files, submission)
    rows = [
        status.as_json(RunDirectory(run))
        | {"job": name, "queue": asdict(jobs[name]) if name in jobs else None}
        for run, name in zip(runs, names, strict=True)
    ]
    return {"tasks": rows} if submission.tasks else rows[0]


def _table(files: SlurmFiles, submission: Submission, jobs: dict[str, scheduler.Job]) -> list[str]:
    """A line a task: its number, job, state, result and reason, and its overrides."""
    runs = task_directories(files.run, submission)
    rows = [("task", "job", "queue", "state", "step", "result", "overrides", "reason")]
    for name, run, task in zip(_names(files, submission), runs, submission.tasks, strict=True):
        found, job = status.as_json(RunDirectory(run)), jobs.get(name)
        state, reason = _state(found)
        step, result = str(found["step"] or 0), _result(found)
        rows.append((run.name, name, _queued(job), state, step, result, " ".join(task), reason))
    return aligned(rows)


def _queued(job: scheduler.Job | None) -> str:
    """What Slurm says of a job, in a word or two."""
    if job is None:
        return "-"
    return job.state if job.is_running else f"{job.state} ({job.reason})"


def _result(found: dict[str, Any]) -> str:
    """The values of the last evaluation, or the loss of the last step."""
    values = found["result"] or ({"loss": found["loss"]} if found["loss"] is not None else {})
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "-"


def _state(found: dict[str, Any]) -> tuple[str, str]:
    """In a word or two, and why."""
    last = found["sessions"][-1] if found["sessions"] else {}
    ended = found["state"] == "ended" and last.get("name")
    state = str(ended).lower().replace("_", " ") if ended else found["state"]
    reason = str(found["refused"] or last.get("reason") or found["presumably"] or "")
    return state, "" if reason == state else reason


def _names(files: SlurmFiles, submission: Submission) -> list[str]:
    """The newest job of the run, or of each task, as squeue names it."""
    submitted = files.submitted()
    if not submission.tasks:
        return [submitted[-1].job]
    newest = {task: f"{one.job}_{task}" for one in submitted for task in one.tasks}
    return [newest.get(task, "-") for task in range(len(submission.tasks))]


def _follow(file: IO[str], is_alive: Callable[[], bool]) -> None:
    """Print what is appended, until the job is gone and all is printed."""
    asked_s, alive = time.monotonic(), True
    while alive:
        if time.monotonic() - asked_s > QUEUE_S:
            asked_s, alive = time.monotonic(), is_alive()
        sys.stdout.write(file.read())
        sys.stdout.flush()
        time.sleep(POLL_S)
    sys.stdout.write(file.read())
