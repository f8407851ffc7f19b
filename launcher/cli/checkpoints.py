"""`swin-moe checkpoint verify | diff | prune`: look after the checkpoints of runs."""

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.checkpoints.diff import compare
from launcher.checkpoints.file_errors import file_errors
from launcher.checkpoints.list import checkpoint_of, directory_of, layout, size
from launcher.config.load import ConfigError
from launcher.console.progress import progress_line
from launcher.rundir.directory import RunDirectory
from launcher.validation.resume_policy import configuration, newest_manifest
from parallel.checkpoint.commit import committed, latest, step_of, steps_to_keep
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from parallel.checkpoint.reader import CheckpointReader
from parallel.checkpoint.scores import ranking
from parallel.checkpoint.verify import problems

LONG = 2**30  # bytes of a checkpoint whose reading shows how far it is


@file_errors()
def run_verify(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint verify`: the exit status, 1 for damage."""
    is_one = (args.place / MANIFEST).is_file()
    paths = [args.place] if is_one else committed(directory_of(args.place))
    damaged = 0
    for path in paths:
        damage = problems(path, progress=_in_mib(path))
        damaged += bool(damage)
        print("\n".join(f"{path}: {problem}" for problem in damage) or f"{path}: {_summary(path)}")
    if not is_one:
        try:
            latest(directory_of(args.place))
        except CheckpointError as error:
            print(error)
            damaged += 1
    return 1 if damaged else 0


def _summary(path: Path) -> str:
    manifest = read_manifest(path)
    tensors, files = len(manifest["tensors"]), len(manifest["files"])
    return f"complete, {tensors} tensors in {files} files, {size(_bytes(manifest))}"


@file_errors()
def run_diff(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint diff`: the exit status, 1 for a difference."""
    places = args.places
    if len(places) == 3:
        paths = [checkpoint_of(places[0], str(step)) for step in places[1:]]
    elif len(places) == 2:
        paths = [checkpoint_of(place) for place in places]
    else:
        raise ConfigError(f"checkpoint diff takes A B or RUN STEP STEP, not {len(places)} arguments")
    a, b = map(CheckpointReader, paths)
    for name, one in (("A", a), ("B", b)):
        print(f"{name}  {one.path} (step {one.manifest['step']}; {layout(one.manifest)})")
    progress = progress_line("diff", "tensors") if _bytes(a.manifest) > LONG else None
    comparison = compare(a, b, rtol=args.rtol, atol=args.atol, progress=progress)
    print("\n".join(comparison.lines(args.top)))
    print("identical" if comparison.identical else "they differ")
    return 0 if comparison.identical else 1


@file_errors()
def run_prune(args: argparse.Namespace, _: list[str]) -> int:
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
    intact = [path for path in paths if not problems(path, deep=False)]
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


def _in_mib(path: Path) -> Callable[[int, int], None] | None:
    """A line that says how far the reading of a large checkpoint is."""
    if sum(file.stat().st_size for file in path.iterdir()) < LONG:
        return None
    show = progress_line(path.name, "MiB")
    return lambda done, total: show(done >> 20, total >> 20)


def _bytes(manifest: Mapping[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())
