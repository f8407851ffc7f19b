"""The jobs of a run that Slurm still knows, and the run directories of a submission. No torch."""

from pathlib import Path

from launcher.slurm import array, scheduler
from launcher.slurm.files import SlurmFiles
from launcher.slurm.submission import Submission


def task_directories(run: Path, submission: Submission) -> list[Path]:
    """The run directories of a submission: one, or one a task."""
    return array.directories(run, len(submission.tasks)) if submission.tasks else [run]


def jobs_alive(files: SlurmFiles) -> list[scheduler.Job]:
    """The jobs of a run that are pending, running or ending."""
    submitted = {one.job for one in files.submitted()}
    return [job for job in scheduler.queue().values() if job.job in submitted] if submitted else []
