"""The story of `swin-moe study run`: read, resolve, check, tell the cost, hold the study, run its cells."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from launcher.config.load import ConfigError
from launcher.rundir.run_lock import RunLock, RunLockedError
from launcher.slurm.submission import Submission
from launcher.study.grid.cost import CellCost, Pace, costs_of, span
from launcher.study.grid.file import load_study_file
from launcher.study.grid.resolve import Plan, Planned, resolve
from launcher.study.grid.state import seconds_of, state_of
from launcher.study.grid.trials import write_study
from launcher.study.run.job_array import check_options, in_queue, prepared, submission_of, submit
from launcher.study.run.run import Options, Runner


def run_study(args: argparse.Namespace) -> int:
    """Carry out `study run`; returns the exit status, and ConfigError comes before anything is written."""
    check_options(args)
    file = load_study_file(args.file)
    submission = submission_of(args, args.file.stem) if args.slurm else None
    ranks = (args.nproc or file.nproc) if submission is None else _ranks(submission)
    jobs = (args.jobs or file.jobs) if submission is None else None
    plan = resolve(args.file, file, ranks, data=not args.dry_run, here=submission is None)
    chosen = choose(plan, args.only)
    pace = Pace(costs=costs_of(plan.cells, file.epoch_images), finished=finished(plan))
    tell(plan, chosen, pace, ranks, jobs)
    if args.dry_run:
        tell_cells(chosen, pace, unchecked(plan))
        return 0
    if submission is not None:
        return _submit(plan, left(chosen, skip_failed=args.skip_failed), submission)
    options = Options(nproc=ranks or 1, jobs=jobs or 1, train=("--reset-crashes",) * args.reset_crashes)
    return _run(plan, chosen, pace, options, skip_failed=args.skip_failed)


def _run(plan: Plan, chosen: Sequence[Planned], pace: Pace, options: Options, *, skip_failed: bool) -> int:
    """Run the cells that are left, here."""
    if queued := in_queue(plan.directory):
        raise ConfigError(
            f"study_dir ({plan.directory}) has {len(queued)} cells in Slurm's queue; wait for them, or first "
            f"`swin-moe slurm cancel {plan.directory / 'cells'}`"
        )
    with held(plan.directory):
        write_study(plan.directory, plan.study)
        todo = left(chosen, skip_failed=skip_failed)
        return Runner(plan=plan, todo=todo, pace=pace, options=options).run()


def _submit(plan: Plan, todo: Sequence[Planned], submission: Submission) -> int:
    """Hand the cells that are left to Slurm, if there are any."""
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
    """Of a cell; None where Slurm decides."""
    low, high = submission.node_range
    return None if low != high or submission.elastic else high * submission.ranks_a_node


def left(chosen: Sequence[Planned], *, skip_failed: bool) -> tuple[Planned, ...]:
    """The cells that are not finished; those that failed among them unless they are to be skipped."""
    done = ("finished", "failed") if skip_failed else ("finished",)
    return tuple(one for one in chosen if state_of(one.run, one.asked).name not in done)


def choose(plan: Plan, only: Sequence[str] | None) -> tuple[Planned, ...]:
    """The cells of some names or patterns, in the plan's order; all without any.

    Raises:
        ConfigError: a pattern that no cell has.
    """
    for pattern in only or ():
        if not any(_is_named(planned, pattern) for planned in plan.cells):
            names = ", ".join(planned.cell.name for planned in plan.cells[:3])
            raise ConfigError(f"--only ({pattern}): no such cell; they are called {names} ...")
    return tuple(p for p in plan.cells if not only or any(_is_named(p, pattern) for pattern in only))


def finished(plan: Plan) -> dict[str, float]:
    """The seconds that every finished cell took, by its name."""
    return {
        planned.cell.name: seconds_of(planned.run, planned.asked)
        for planned in plan.cells
        if state_of(planned.run, planned.asked).name == "finished"
    }


def tell(plan: Plan, chosen: Sequence[Planned], pace: Pace, ranks: int | None, jobs: int | None) -> None:
    """What the grid costs, before it starts; `jobs` is None where Slurm decides how many cells at a time."""
    todo = [planned for planned in chosen if planned.cell.name not in pace.finished]
    done = f", {len(chosen) - len(todo)} finished" if len(todo) < len(chosen) else ""
    print(f"{plan.study.name}: {len(chosen)} cells in {plan.directory}{done}")
    for warning in plan.warnings:
        print(f"  warning: {warning}")
    if not todo:
        return
    size = f" of {ranks} rank{'s' * (ranks > 1)}" if ranks else ""
    costs = [pace.costs[planned.cell.name] for planned in todo]
    print(f"  to run   {len(todo)} cells{size}{f', {jobs} at a time' if jobs else ''}: {_sum(costs)}")
    seconds = pace.left_s([(planned, 0.0) for planned in todo], plan.cells, jobs or 1)
    how = "as finished cells took" + ("" if jobs else ", one after the other")
    known = f"about {span(seconds)}, {how}" if seconds else "known when a cell has finished"
    print(f"  time     {known}", flush=True)


def tell_cells(chosen: Sequence[Planned], pace: Pace, missing: Sequence[str]) -> None:
    """For --dry-run: every cell with its cost, and what could not be checked."""
    width = max(len(planned.cell.name) for planned in chosen)
    for planned in chosen:
        one = pace.costs[planned.cell.name]
        steps = "steps unknown" if one.steps is None else f"{one.steps:,} steps"
        size = f"{_short(one.model.parameters)} parameters, {_short(one.model.active_parameters)} active"
        work = f"{_short(one.model.flops)} multiply-adds an image"
        print(f"  {planned.cell.name:<{width}}  {steps}, {size}, {work}")
    print("  evaluation: " + "; ".join(dict.fromkeys(_evaluation(planned) for planned in chosen)))
    for line in missing:
        print(f"  not checked: {line}")


def unchecked(plan: Plan) -> list[str]:
    """What a dry run leaves open: shards that are not here."""
    from launcher.validation.rules import problems

    found: dict[str, None] = {}
    for planned in plan.cells:
        without = problems(planned.config, data=False)
        found |= dict.fromkeys(line for line in problems(planned.config) if line not in without)
    return list(found)


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
            f"study_dir ({directory}) is in use by {error}; wait for it, or look on with `study status`"
        ) from error
    try:
        yield
    finally:
        lease.release()


def _is_named(planned: Planned, pattern: str) -> bool:
    return planned.cell.name == pattern or fnmatch(planned.cell.name, pattern)


def _sum(costs: Sequence[CellCost]) -> str:
    steps, images = (sum(getattr(one, name) or 0 for one in costs) for name in ("steps", "images"))
    flops = sum(one.flops or 0 for one in costs)
    unknown = sum(one.steps is None for one in costs)
    text = f"{steps:,} steps, {images:,} images, {flops:.3g} multiply-adds (3 forward passes, none dropped)"
    return text + (f"; not counting {unknown} cells of unknown length" if unknown else "")


def _evaluation(planned: Planned) -> str:
    ways = planned.asked.ways
    return f"{len(ways)} combinations of capacity and top-k" if ways else "exact"


def _short(number: int) -> str:
    """65,800,000 -> 65.8M."""
    for factor, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.4g}{letter}"
    return str(number)
