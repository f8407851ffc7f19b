"""`swin-moe checkpoint verify | diff`: look after the checkpoints of runs."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.checkpoints.diff import compare
from launcher.checkpoints.file_errors import file_errors
from launcher.checkpoints.list import checkpoint_of, directory_of, layout, size
from launcher.config.load import ConfigError
from launcher.console.progress import progress_line
from parallel.checkpoint.commit import committed, latest
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from parallel.checkpoint.reader import CheckpointReader
from parallel.checkpoint.scores import LATEST
from parallel.checkpoint.verify import problems

LONG = 2**30  # bytes of a checkpoint whose reading shows how far it is


@file_errors()
def run_verify(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint verify`: the exit status, 1 for damage."""
    is_one = (args.place / MANIFEST).is_file()
    paths = [args.place] if is_one else committed(directory_of(args.place))
    damaged, found = 0, []
    for path in paths:
        damage = problems(path, progress=_in_mib(path))
        damaged += bool(damage)
        found.append({"path": path, "problems": damage})
        print("\n".join(f"{path}: {problem}" for problem in damage) or f"{path}: {_summary(path)}")
    if not is_one:
        try:
            latest(directory_of(args.place))
        except CheckpointError as error:
            print(error)
            damaged += 1
            found.append({"path": directory_of(args.place) / LATEST, "problems": [str(error)]})
    args.answer = {"intact": not damaged, "checked": found}
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
    places = {"a": a.path, "b": b.path, "identical": comparison.identical}
    args.answer = {**places, **asdict(comparison), "options": comparison.options}
    return 0 if comparison.identical else 1


def _in_mib(path: Path) -> Callable[[int, int], None] | None:
    """A line that says how far the reading of a large checkpoint is."""
    if sum(file.stat().st_size for file in path.iterdir()) < LONG:
        return None
    show = progress_line(path.name, "MiB")
    return lambda done, total: show(done >> 20, total >> 20)


def _bytes(manifest: Mapping[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())
