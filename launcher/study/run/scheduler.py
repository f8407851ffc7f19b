"""`swin-moe study run`: read, resolve, check, print the cost, lock the study, run its trials."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from launcher.config.load import ConfigError
from launcher.console.counts import span
from launcher.rundir.run_lock import RunLock, RunLockedError
from launcher.slurm.submission import Submission
from launcher.study.grid.cost import TimeEstimator, TrialCost, costs_of
from launcher.study.grid.file import load_study_file
from launcher.study.grid.resolve import PlannedTrial, StudyPlan, resolve
from launcher.study.grid.state import seconds_of, state_of
from launcher.study.grid.trials import write_study
from launcher.study.run.job_array import check_options, prepared, submission_of, submit
from launcher.study.run.queued import in_queue
from launcher.study.run.run import Options, Runner


def run_study(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `study run`; returns the exit status, and ConfigError comes before anything is written."""
    check_options(args)
    file = load_study_file(args.file)
    submission = submission_of(args, args.file.stem) if args.slurm else None
    ranks = (args.nproc or file.nproc) if submission is None else _ranks(submission)
    jobs = (args.jobs or file.jobs) if submission is None else None
    plan = resolve(args.file, file, ranks, data=not args.dry_run, here=submission is None)
    chosen = choose(plan, args.only)
    estimator = TimeEstimator(costs=costs_of(plan.trials, file.epoch_images), finished=finished(plan))
    print_cost(plan, chosen, estimator, ranks, jobs)
    args.answer = {"study": plan.directory, "trials": {one.trial.name: None for one in chosen}}
    if args.dry_run:
        print_trials(chosen, estimator, unchecked(plan))
        return 0
    if submission is not None:
        return _submit(plan, left(chosen, skip_failed=args.skip_failed), submission)
    options = Options(nproc=ranks or 1, jobs=jobs or 1, train=("--reset-crashes",) * args.reset_crashes)
    code = _run(plan, chosen, estimator, options, skip_failed=args.skip_failed)
    args.answer |= {"trials": {one.trial.name: state_of(one.run, one.requested) for one in chosen}}
    return code


def _run(
    plan: StudyPlan,
    chosen: Sequence[PlannedTrial],
    estimator: TimeEstimator,
    options: Options,
    *,
    skip_failed: bool,
) -> int:
    """Run the trials that are left, here."""
    if queued := in_queue(plan.directory):
        raise ConfigError(
            f"study_dir ({plan.directory}) has {len(queued)} trials in Slurm's queue; wait for them, or "
            f"first `swin-moe slurm cancel {plan.directory / 'cells'}`"
        )
    with held(plan.directory):
        write_study(plan.directory, plan.study)
        todo = left(chosen, skip_failed=skip_failed)
        return Runner(plan=plan, todo=todo, estimator=estimator, options=options).run()


def _submit(plan: StudyPlan, todo: Sequence[PlannedTrial], submission: Submission) -> int:
    """Hand the trials that are left to Slurm, if there are any."""
    if not todo:
        print("nothing is left to submit")
        return 0
    array = prepared(plan, todo, submission)
    with held(plan.directory):
        code = submit(plan, todo, array)
        write_study(plan.directory, plan.study)
    print(f"  study    swin-moe study status {plan.directory}")
    return code


def _ranks(submission: Submission) -> int | None:
    """Of a trial; None where Slurm decides."""
    low, high = submission.node_range
    return None if low != high or submission.elastic else high * submission.ranks_a_node


def left(chosen: Sequence[PlannedTrial], *, skip_failed: bool) -> tuple[PlannedTrial, ...]:
    """The trials that are not finished; those that failed among them unless they are to be skipped."""
    done = ("finished", "failed") if skip_failed else ("finished",)
    return tuple(one for one in chosen if state_of(one.run, one.requested).name not in done)


def choose(plan: StudyPlan, only: Sequence[str] | None) -> tuple[PlannedTrial, ...]:
    """The trials of some names or patterns, in the plan's order; all without any.

    Raises:
        ConfigError: a pattern that no trial has.
    """
    for pattern in only or ():
        if not any(_is_named(planned, pattern) for planned in plan.trials):
            names = ", ".join(planned.trial.name for planned in plan.trials[:3])
            raise ConfigError(f"--only ({pattern}): no such trial; they are called {names} ...")
    return tuple(p for p in plan.trials if not only or any(_is_named(p, pattern) for pattern in only))


def finished(plan: StudyPlan) -> dict[str, float]:
    """The seconds that every finished trial took, by its name."""
    return {
        planned.trial.name: seconds_of(planned.run, planned.requested)
        for planned in plan.trials
        if state_of(planned.run, planned.requested).name == "finished"
    }


def print_cost(
    plan: StudyPlan,
    chosen: Sequence[PlannedTrial],
    estimator: TimeEstimator,
    ranks: int | None,
    jobs: int | None,
) -> None:
    """What the grid costs, before it starts; `jobs` is None where Slurm decides how many trials at a time."""
    todo = [planned for planned in chosen if planned.trial.name not in estimator.finished]
    done = f", {len(chosen) - len(todo)} finished" if len(todo) < len(chosen) else ""
    print(f"{plan.study.name}: {len(chosen)} trials in {plan.directory}{done}")
    for warning in plan.warnings:
        print(f"  warning: {warning}")
    if not todo:
        return
    size = f" of {ranks} rank{'s' * (ranks > 1)}" if ranks else ""
    costs = [estimator.costs[planned.trial.name] for planned in todo]
    print(f"  to run   {len(todo)} trials{size}{f', {jobs} at a time' if jobs else ''}: {_sum(costs)}")
    seconds = estimator.left_s([(planned, 0.0) for planned in todo], plan.trials, jobs or 1)
    how = "as finished trials took" + ("" if jobs else ", one after the other")
    known = f"about {span(seconds)}, {how}" if seconds else "known when a trial has finished"
    print(f"  time     {known}", flush=True)


def print_trials(chosen: Sequence[PlannedTrial], estimator: TimeEstimator, missing: Sequence[str]) -> None:
    """For --dry-run: every trial with its cost, and what could not be checked."""
    width = max(len(planned.trial.name) for planned in chosen)
    for planned in chosen:
        one = estimator.costs[planned.trial.name]
        steps = "steps unknown" if one.steps is None else f"{one.steps:,} steps"
        size = f"{_short(one.model.parameters)} parameters, {_short(one.model.active_parameters)} active"
        work = f"{_short(one.model.flops)} multiply-adds an image"
        print(f"  {planned.trial.name:<{width}}  {steps}, {size}, {work}")
    print("  evaluation: " + "; ".join(dict.fromkeys(_evaluation(planned) for planned in chosen)))
    for line in missing:
        print(f"  not checked: {line}")


def unchecked(plan: StudyPlan) -> list[str]:
    """What a dry run leaves open: shards that are not here."""
    from launcher.validation.rules import problems

    lines: dict[str, None] = {}
    for planned in plan.trials:
        without = problems(planned.config, data=False)
        lines |= dict.fromkeys(line for line in problems(planned.config) if line not in without)
    return list(lines)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the lock of a study.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """
    lease = RunLock(directory / "lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lease.take()
    except OSError as error:
        raise ConfigError(f"study_dir ({directory}) cannot be written: {error.strerror}") from error
    except RunLockedError as error:
        raise ConfigError(
            f"study_dir ({directory}) is in use by {error}; wait for it: `swin-moe study status` shows it"
        ) from error
    try:
        yield
    finally:
        lease.release()


def _is_named(planned: PlannedTrial, pattern: str) -> bool:
    return planned.trial.name == pattern or fnmatch(planned.trial.name, pattern)


def _sum(costs: Sequence[TrialCost]) -> str:
    steps, images = (sum(getattr(one, name) or 0 for one in costs) for name in ("steps", "images"))
    flops = sum(one.flops or 0 for one in costs)
    unknown = sum(one.steps is None for one in costs)
    text = f"{steps:,} steps, {images:,} images, {flops:.3g} multiply-adds (3 forward passes, none dropped)"
    return text + (f"; not counting {unknown} trials of unknown length" if unknown else "")


def _evaluation(planned: PlannedTrial) -> str:
    combinations = planned.requested.combinations
    return f"{len(combinations)} combinations of capacity and top-k" if combinations else "exact"


def _short(number: int) -> str:
    """65,800,000 -> 65.8M."""
    for factor, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.4g}{letter}"
    return str(number)
