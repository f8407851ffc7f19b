"""The story of a submission: read, check, write, hand to sbatch; and the same again for `resume`."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.load import ConfigError, config_file, dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.slurm import array, scheduler
from launcher.slurm.absolute_paths import with_absolute_paths
from launcher.slurm.files import Changes, SlurmFiles, changing
from launcher.slurm.queued import jobs_alive, task_directories
from launcher.slurm.quoting import word
from launcher.slurm.script import environment_file, given, render
from launcher.slurm.site import load_site
from launcher.slurm.submission import Submission, dump_submission, merged, read_submission
from launcher.slurm.validate import check_earlier, layout, node_counts
from launcher.validation.rules import steps_in
from launcher.validation.train_sets import images_per_epoch


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything about a submission before anything is written."""

    run: Path
    submission: Submission
    configs: Sequence[RunConfig]  # one, or one a task
    indices: Sequence[int]  # the tasks to run; empty without an array
    sizes: Sequence[int]  # numbers of nodes on which it can train

    @property
    def script(self) -> str:
        """The batch script."""
        return render(self.submission, self.run, self.sizes, self.indices)


def submit(args: argparse.Namespace, _: list[str]) -> int:
    """`swin-moe slurm submit`: ConfigError before anything is queued or written."""
    site = load_site()
    below = Submission(config=os.path.abspath(config_file(args.config)), directory=os.getcwd(), site=site)
    submission = merged({**vars(args), "config": None}, below)
    if args.array is None:
        config = with_absolute_paths(load_config(args.config, args.overrides))
        prepared = prepare(submission, Path(config.run_dir), [config])
    else:
        submission = replace(submission, tasks=array.read_tasks(args.array))
        run, configs = array.configurations(args.config, args.overrides, submission.tasks)
        prepared = prepare(submission, run, configs, range(len(configs)))
    return _carry_out(prepared, args)


def _carry_out(prepared: Prepared, args: argparse.Namespace) -> int:
    """Show what would be submitted, or submit it."""
    args.answer = {"run": prepared.run, "tasks": list(prepared.indices), "job": None}
    if args.dry_run:
        args.answer["script"] = prepared.script
        return _show(prepared)
    code, files = post(prepared), SlurmFiles(prepared.run)
    args.answer |= {"job": files.submitted()[-1].job, "script": files.script}
    return code


def resume(args: argparse.Namespace, _: list[str]) -> int:
    """`swin-moe slurm resume`: the newest submission again, with what the command line changes."""
    files = SlurmFiles(Path(os.path.abspath(args.run_directory)))
    before = read_submission(files.submission)
    site = replace(before.site, environment=load_site().environment)
    submission = merged(vars(args), replace(before, dependency=None, site=site))
    directories = task_directories(files.run, submission)
    configs = [load_config(SlurmFiles(run).config) for run in directories]
    left = [i for i, config in enumerate(configs) if not is_finished(directories[i], config)]
    if not left:
        raise ConfigError(f"{files.run} is finished; to train longer, submit a configuration that says so")
    indices = left if submission.tasks else ()
    prepared = prepare(submission, files.run, configs, indices)
    return _carry_out(prepared, args)


def is_finished(run: Path, config: RunConfig) -> bool:
    """Whether a run has trained as long as its configuration says, or stopped early as it says."""
    try:
        summary = json.loads(RunDirectory(run).summary.read_text())
        steps = int(summary["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if config.train.early_stop and summary.get("stopped_early"):
        return True
    return steps >= steps_in(config.train.duration, config, images_per_epoch(config.data))


def prepare(
    submission: Submission, run: Path, configs: Sequence[RunConfig], indices: Sequence[int] = ()
) -> Prepared:
    """Check everything; of an array every task that is to run.

    Raises:
        ConfigError: with all errors, those of tasks by their numbers.
    """
    submission.check(run)
    if not submission.tasks:
        sizes = node_counts(configs[0], submission)
        check_earlier(configs[0], submission)
    else:
        sizes = _sizes_of_tasks(submission, configs, indices)
    prepared = Prepared(run=run, submission=submission, configs=configs, indices=indices, sizes=sizes)
    prepared.script  # noqa: B018  (raises)
    return prepared


def _sizes_of_tasks(
    submission: Submission, configs: Sequence[RunConfig], indices: Sequence[int]
) -> list[int]:
    errors, common = [], set(range(submission.node_range[1] + 1))
    for index in indices:
        try:
            common &= set(node_counts(configs[index], submission))
            check_earlier(configs[index], submission)
        except ConfigError as error:
            errors.append(array.named(index, submission.tasks[index], error))
    if errors:
        raise ConfigError("\n".join(errors))
    return sorted(common)


def _show(prepared: Prepared) -> int:
    print(prepared.script, end="")
    return 0


def post(prepared: Prepared) -> int:
    """Write and submit, or leave all as it was."""
    run, submission = prepared.run, prepared.submission
    files = SlurmFiles(run)
    refuse_while_queued(files)
    refuse_too_many_nodes(submission)
    with changing(RunDirectory(run)) as changes:
        _write(prepared, files, changes)
        job = scheduler.submit(files.script, given(prepared.script.splitlines()))
        files.record(job, submission.nodes, prepared.indices)
    what = f"array of {len(prepared.indices)} tasks, each " if prepared.indices else ""
    print(f"job {job} submitted: {what}{layout(prepared.configs[0], submission)}")
    print(f"  log      {files.log if not prepared.indices else run / '*' / 'slurm' / 'log.txt'}")
    print(f"  see      swin-moe slurm status {word(run)}")
    return 0


def refuse_while_queued(files: SlurmFiles) -> None:
    """Raise ConfigError while Slurm still knows a job of this run."""
    if not scheduler.has_slurm():
        raise ConfigError(
            "there is no sbatch on PATH: submit on a login node of a Slurm cluster (or --dry-run)"
        )
    if alive := jobs_alive(files):
        first, more = alive[0], f" and {len(alive) - 1} more" * (len(alive) > 1)
        raise ConfigError(
            f"run_dir ({files.run}) has a job already: {first}{more}; choose another run_dir, or first "
            f"`swin-moe slurm cancel {word(files.run)}`"
        )


def refuse_too_many_nodes(submission: Submission) -> None:
    """Raise ConfigError where the partition has fewer nodes than the job needs: it would wait for ever."""
    needed, partition = submission.node_range[0], submission.site.partition
    there = scheduler.nodes_in(partition)
    if there is not None and needed > there:
        name = f"partition {partition}" if partition else "the default partition"
        raise ConfigError(f"--nodes ({submission.nodes}): {name} has {there} nodes; ask for fewer nodes")


def _write(prepared: Prepared, files: SlurmFiles, changes: Changes) -> None:
    directories = task_directories(prepared.run, prepared.submission)
    changes.directory(files.directory)
    changes.write(files.script, prepared.script, 0o700)
    changes.write(files.environment, environment_file(prepared.submission, dict(os.environ)), 0o600)
    changes.write(files.submission, dump_submission(prepared.submission))
    for index in prepared.indices or [0]:
        of_task = SlurmFiles(directories[index])
        changes.directory(of_task.directory)
        changes.write(of_task.config, dump_config(prepared.configs[index]))
        changes.remove(of_task.cancelled)
