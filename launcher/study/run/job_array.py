"""A study on Slurm: its trials as the tasks of one job array, each of which trains and then evaluates.

The array lives in STUDY/cells, where `swin-moe slurm status | logs | cancel` find it: cells/000, 001 ... are
links to the directories of the trials. RUN/slurm/evaluate tells the batch script what follows the training.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.config.load import ConfigError, dump_config
from launcher.slurm import array
from launcher.slurm.absolute_paths import with_absolute_paths
from launcher.slurm.files import SlurmFiles
from launcher.slurm.quoting import job_name
from launcher.slurm.site import load_site
from launcher.slurm.submission import Submission, merged
from launcher.slurm.submit import Prepared, post, prepare, refuse_while_queued
from launcher.study.grid.resolve import PlannedTrial, StudyPlan
from launcher.study.grid.state import note_submitted

logger = logging.getLogger(__name__)


def submission_of(args: argparse.Namespace, name: str) -> Submission:
    """What the command line and the site's file ask for; ConfigError for a value that cannot be."""
    below = Submission(
        config=os.path.abspath(args.file), directory=os.getcwd(), job_name=job_name(name), site=load_site()
    )
    return merged({**vars(args), "config": None}, below)


def check_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that are only for Slurm, or only for trials that run here."""
    base = Submission(config="", directory="")
    for_slurm = [name for name, value in vars(args).items() if merged({name: value}, base) != base]
    here = [name for name in ("nproc", "jobs") if getattr(args, name) is not None]
    for name in here if args.slurm else for_slurm:
        option = f"--{name.replace('_', '-')} ({getattr(args, name)})"
        fix = (
            "leave it out; --nodes and --ranks-per-node set the number of ranks"
            if args.slurm
            else "add --slurm"
        )
        raise ConfigError(f"{option} is {'not for' if args.slurm else 'for'} --slurm: {fix}")


def prepared(plan: StudyPlan, chosen: Sequence[PlannedTrial], submission: Submission) -> Prepared:
    """The array of all trials, of which the chosen ones run; nothing is written.

    Raises:
        ConfigError: with the errors of all trials.
    """
    cells = SlurmFiles(Path(os.path.abspath(plan.directory)) / "cells")
    by_name = {planned.trial.name: planned for planned in plan.trials}
    names = _numbered(cells.run)
    names += [name for name in by_name if name not in names]
    submission = replace(submission, tasks=tuple((name,) for name in names))
    configs = [with_absolute_paths(by_name.get(name, plan.trials[0]).config) for name in names]
    indices = sorted(names.index(planned.trial.name) for planned in chosen)
    return prepare(submission, cells.run, configs, indices)


def submit(plan: StudyPlan, chosen: Sequence[PlannedTrial], array_of: Prepared) -> int:
    """Number the trials, write what follows the training, and submit; ConfigError while a job is queued."""
    files = SlurmFiles(array_of.run)
    refuse_while_queued(files)
    names = [task[0] for task in array_of.submission.tasks]
    for link, name in zip(array.directories(files.run, len(names)), names, strict=True):
        (files.run / name).mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(name)
    for planned in plan.trials:
        of_trial = SlurmFiles(files.run / planned.trial.name)
        of_trial.directory.mkdir(exist_ok=True)
        of_trial.config.write_text(
            dump_config(with_absolute_paths(planned.config))
        )  # `slurm resume` reads every one
        words = "".join(f"{word}\n" for word in planned.requested.arguments)
        (of_trial.directory / "evaluate").write_text(words)
    code = post(array_of)
    for planned in chosen:
        note_submitted(planned.run)
    return code


def _numbered(trials: Path) -> list[str]:
    """The trials that have a number already, in its order, so that they keep it."""
    links = [path for path in trials.glob("[0-9]*") if path.is_symlink() and path.is_dir()]
    return [os.readlink(path) for path in sorted(links, key=lambda path: int(path.name))]
