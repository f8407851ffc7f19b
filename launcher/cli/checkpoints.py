"""`swin-moe checkpoint ls | verify | diff | convert | export | prune`: look after the checkpoints of runs."""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.checkpoints import import_ as checkpoint_import
from launcher.checkpoints.diff import compare
from launcher.checkpoints.list import checkpoint_of, directory_of, layout, rows, size
from launcher.cli import convert
from launcher.config.load import ConfigError
from launcher.console.arguments import Commands, add_command, positive
from launcher.console.progress import progress_line
from launcher.rundir.directory import RunDirectory
from parallel.checkpoint.commit import committed, latest, step_of, steps_to_keep
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from parallel.checkpoint.reader import CheckpointReader
from parallel.checkpoint.verify import problems

LS_HELP = """\
examples:
  swin-moe checkpoint ls runs/demo                     sizes are compared with the manifests
  swin-moe checkpoint ls runs/demo --verify            every byte is read
  swin-moe checkpoint ls runs/demo --json | jq '.[] | select(.latest)'

`latest` is the one that a run goes on from. `partial` is a save under way, or one that was killed: the next
save sweeps it, and so does `prune`.
"""
VERIFY_HELP = """\
examples:
  swin-moe checkpoint verify runs/demo                 every checkpoint of the run
  swin-moe checkpoint verify runs/demo/checkpoints/step-00000234

Every file's sha256, and that the tensors in the files are those of the manifest, by name, shape and type.
Exit status 1 when one is damaged; each line names the file and the reason.
"""
DIFF_HELP = """\
examples:
  swin-moe checkpoint diff runs/a runs/b                          the newest of each
  swin-moe checkpoint diff runs/a 100 200                         two steps of one run
  swin-moe checkpoint diff runs/a/checkpoints/step-00000100 runs/b --rtol 1e-5 --top 30

Exit status 0 when they are identical, 1 when they differ, as diff(1). The layout that wrote them and options
that change no result do not count. Relative differences are shares of the largest element of the tensor.
"""
PRUNE_HELP = """\
examples:
  swin-moe checkpoint prune runs/demo --keep-last 2 --dry-run
  swin-moe checkpoint prune runs/demo --keep-last 2 --keep-every 10000

The one that `latest` names always stays. One that has lost a file does not count as kept. What killed saves
left is swept too. Refused while the run trains.
"""
LONG = 2**30  # bytes of a checkpoint whose reading shows how far it is


def add_parser(subparsers: Commands) -> None:
    """Add `checkpoint` with its commands to the launcher's `subparsers`."""
    checkpoint = subparsers.add_parser(
        "checkpoint", help="list, verify, compare, import and prune checkpoints"
    )
    checkpoint.set_defaults(run=run)
    commands = checkpoint.add_subparsers(dest="checkpoint_command", required=True, metavar=" | ".join(RUN))
    ls = add_command(commands, "ls", "list the checkpoints of a run", LS_HELP)
    ls.add_argument("run_directory", type=Path, metavar="RUN")
    ls.add_argument("--verify", action="store_true", help="read every file and compare its sha256")
    ls.add_argument("--json", action="store_true", help="a list of objects")
    verify = add_command(commands, "verify", "find damaged checkpoints", VERIFY_HELP)
    verify.add_argument("place", type=Path, metavar="RUN|CHECKPOINT", help="a run, or a step's directory")
    _add_diff(add_command(commands, "diff", "compare two checkpoints", DIFF_HELP))
    checkpoint_import.add_arguments(
        add_command(commands, "convert", "a run out of official files", checkpoint_import.CONVERT_HELP)
    )
    convert.add_export(add_command(commands, "export", "the weights of a run", convert.EXPORT_HELP))
    prune = add_command(commands, "prune", "delete old checkpoints", PRUNE_HELP)
    prune.add_argument("run_directory", type=Path, metavar="RUN")
    prune.add_argument("--keep-last", type=positive, required=True, metavar="N", help="the last N stay")
    prune.add_argument("--keep-every", type=positive, metavar="M", help="and every step divisible by M")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, and delete nothing")


def _add_diff(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("places", type=Path, nargs="+", metavar="A B | RUN STEP STEP", help="runs, checkpoints or steps")
    add("--rtol", type=float, default=0.0, help="relative tolerance of an element (default %(default)s)")
    add("--atol", type=float, default=0.0, help="absolute tolerance (default %(default)s)")
    add("--top", type=positive, default=10, metavar="N", help="tensors to name (default %(default)s)")


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Carry out a parsed `checkpoint` command: the exit status, 1 for damage or a difference."""
    try:
        return RUN[args.checkpoint_command](args, arguments)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error


def _run_ls(args: argparse.Namespace, _: list[str]) -> int:
    entries = rows(directory_of(args.run_directory), deep=args.verify)
    if args.json:
        print(json.dumps([asdict(row) for row in entries], indent=1))
    else:
        print("\n".join(map(str, entries)))
    return 0


def _run_verify(args: argparse.Namespace, _: list[str]) -> int:
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


def _run_diff(args: argparse.Namespace, _: list[str]) -> int:
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


def _run_prune(args: argparse.Namespace, _: list[str]) -> int:
    directory = directory_of(args.run_directory)
    if directory.name != "checkpoints":
        raise ConfigError(f"{args.run_directory} is no run directory: its lock cannot be taken")
    run = RunDirectory(directory.parent)
    run.lock(resume=True)  # while a process trains here, nothing goes
    try:
        going = to_prune(directory, args.keep_last, args.keep_every)
        staying = [path.name for path in committed(directory) if path not in going]
        for path in going:
            print(f"{'would delete' if args.dry_run else 'deleting'} {path}")
            if not args.dry_run:
                shutil.rmtree(_tombstone(path))
    finally:
        run.unlock()
    print(f"{', '.join(staying)} stay" if len(staying) != 1 else f"{staying[0]} stays")
    return 0


def to_prune(directory: Path, keep_last: int, keep_every: int | None) -> list[Path]:
    """What pruning deletes: old checkpoints, and what killed saves left.

    A checkpoint that has lost a file, or a part of one, does not count as one that is kept.
    """
    paths, newest = committed(directory), latest(directory)
    intact = [path for path in paths if not problems(path, deep=False)]
    current = step_of(newest or paths[-1]) if paths else 0
    staying = steps_to_keep(map(step_of, intact), current, keep_last, keep_every)
    return [path for path in paths if step_of(path) not in staying] + sorted(directory.glob("step-*.tmp"))


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


RUN: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "ls": _run_ls,
    "verify": _run_verify,
    "diff": _run_diff,
    "convert": checkpoint_import.run,
    "export": convert.run_export,
    "prune": _run_prune,
}
