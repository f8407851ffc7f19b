"""`swin-moe checkpoint prune`: delete old checkpoints. No torch."""

import argparse
import shutil
from pathlib import Path

from launcher.checkpoints.file_errors import file_errors
from launcher.checkpoints.list import directory_of
from launcher.config.errors import ConfigError
from launcher.rundir.directory import RunDirectory
from launcher.validation.resume_policy import configuration, newest_manifest
from parallel.checkpoint.commit import committed, latest, step_of, steps_to_keep
from parallel.checkpoint.scores import ranking
from parallel.checkpoint.sizes import size_problems


@file_errors()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint prune`: the exit status."""
    directory = directory_of(args.run_directory)
    if directory.name != "checkpoints":
        raise ConfigError(f"{args.run_directory} is no run directory: its lock cannot be taken")
    run = RunDirectory(directory.parent)
    run.lock(resume=True)  # while a process trains here, nothing goes
    try:
        going = to_prune(directory, args.keep_last, args.keep_every, args.keep_best)
        staying = [path.name for path in committed(directory) if path not in going]
        for path in going:
            print(f"{'would delete' if args.dry_run else 'deleting'} {path}")
            if not args.dry_run:
                shutil.rmtree(_tombstone(path))
    finally:
        run.unlock()
    args.answer = {
        "directory": directory,
        "deleted": [path.name for path in going],
        "kept": staying,
        "dry_run": args.dry_run,
    }
    print(f"{', '.join(staying)} stay" if len(staying) != 1 else f"{staying[0]} stays")
    return 0


def to_prune(
    directory: Path, keep_last: int, keep_every: int | None, keep_best: int | None = None
) -> list[Path]:
    """What pruning deletes: old checkpoints, and what killed saves left.

    A checkpoint that has lost a file, or a part of one, does not count as one that is kept.

    Args:
        directory: of all checkpoints of a run.
        keep_last: so many stay, the newest ones, and
        keep_every: those of steps that are divisible by this, and
        keep_best: so many with the best evaluations; None: as many as the run keeps itself.
    """
    paths, newest = committed(directory), latest(directory)
    intact = [path for path in paths if not size_problems(path)]
    current = step_of(newest or paths[-1]) if paths else 0
    staying = steps_to_keep(map(step_of, intact), current, keep_last, keep_every, _best(directory, keep_best))
    return [path for path in paths if step_of(path) not in staying] + sorted(directory.glob("step-*.tmp"))


def _best(directory: Path, keep_best: int | None) -> list[int]:
    """The steps of the best checkpoints that stay."""
    if keep_best is None:
        newest = newest_manifest(directory)
        options = configuration(newest[1]).get("checkpoint") if newest and "config" in newest[1] else None
        keep_best = options.get("keep_best", 0) if isinstance(options, dict) else 0
    ranked = ranking(directory)
    return ranked.steps[:keep_best] if ranked else []


def _tombstone(path: Path) -> Path:
    """The same under a name that no reader looks at, so that a kill leaves no half of a checkpoint."""
    if path.suffix == ".tmp":
        return path
    return path.rename(path.with_suffix(".pruned.tmp"))
