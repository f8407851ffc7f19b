"""The trials that Slurm still knows. No torch."""

import logging
import os
from pathlib import Path

from launcher.config.errors import ConfigError
from launcher.slurm import scheduler
from launcher.slurm.files import SlurmFiles
from launcher.slurm.queued import jobs_alive
from launcher.slurm.submission import read_submission

logger = logging.getLogger(__name__)


def in_queue(directory: Path) -> set[str]:
    """The names of the trials that Slurm still knows; none where there is no Slurm."""
    files = SlurmFiles(Path(os.path.abspath(directory)) / "cells")
    if not files.jobs.exists() or not scheduler.has_slurm():
        return set()
    names = [task[0] for task in read_submission(files.submission).tasks]
    try:
        alive = {job.name for job in jobs_alive(files)}
    except ConfigError as error:  # the study can be described without Slurm
        logger.warning("%s", error)
        return set()
    numbers = {task: f"{one.job}_{task}" for one in files.submitted() for task in one.tasks}
    return {names[task] for task, name in numbers.items() if name in alive and task < len(names)}
