"""How files become a checkpoint: manifest, sync, rename, pointer; and which checkpoints are kept.

A step is written as `step-N.tmp`, which no reader looks at. Once every file is durable, the manifest with
their sizes and checksums is written, the directory renamed and the pointer `latest` replaced, each durable
before the next. A kill at any point leaves the last committed step in force.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest, with_checksum
from parallel.durable import atomic_write, sweep_temporaries, sync_directory

POINTER = "latest"
_STEP = re.compile(r"step-([0-9]{8,})", re.ASCII)


def path_of(directory: Path, step: int) -> Path:
    """The path of the checkpoint of a step once it is committed."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a committed checkpoint, by its name."""
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def committed(directory: Path) -> list[Path]:
    """Every committed directory, by step; some may have been damaged since."""
    paths = [path for path in directory.glob("step-*") if _STEP.fullmatch(path.name)]
    return sorted(paths, key=step_of)


def open_partial(partial: Path) -> None:
    """Delete what killed saves left, and make an empty directory.

    Only the run that holds the directory's lock may call it, and not while it writes another save.
    """
    for stale in partial.parent.glob("step-*.tmp"):
        shutil.rmtree(stale)
    sweep_temporaries(partial.parent, lambda name: name == POINTER)
    partial.mkdir(parents=True)


def commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, rename the directory and set the pointer, each durable before the next."""
    atomic_write(partial / MANIFEST, json.dumps(with_checksum(manifest), indent=1), sync="directory")
    replaced = final.with_suffix(".replaced.tmp")
    if final.exists():  # the run went back before this step and came here again
        os.rename(final, replaced)
    os.rename(partial, final)
    sync_directory(final.parent)
    set_latest(final)
    if replaced.exists():
        shutil.rmtree(replaced)


def set_latest(path: Path) -> None:
    """Make a committed checkpoint the one to resume from, durably."""
    atomic_write(path.parent / POINTER, path.name + "\n", sync="directory")


def annotate(path: Path, entries: Mapping[str, Any]) -> None:
    """Set entries of a committed checkpoint's manifest, durably; its tensors stay as they are.

    Raises:
        CheckpointError: its manifest cannot be read; OSError: it cannot be written.
    """
    manifest = with_checksum({**read_manifest(path), **entries})
    atomic_write(path / MANIFEST, json.dumps(manifest, indent=1), sync="directory")


def steps_to_keep(
    steps: Iterable[int],
    current: int,
    keep_last: int,
    keep_every: int | None,
    best: Collection[int] = (),
) -> set[int]:
    """Which checkpoints to keep: the last ones of the run, all at multiples of `keep_every`, and the best.

    Args:
        steps: of all checkpoints.
        current: the one to resume from, which is always kept. After the run went back to an earlier step
            there may be later ones, of an abandoned branch: they count as older than the run's own.
        keep_last: how many, at least 1.
        keep_every: steps; None keeps no others.
        best: steps whose checkpoints are kept, where they are there.
    """
    by_age = sorted(steps, key=lambda step: (step <= current, step))
    lasting = {step for step in by_age if (keep_every and step % keep_every == 0) or step in best}
    return lasting.union(by_age[-max(1, keep_last) :], [current])


def prune(directory: Path, keep_last: int, keep_every: int | None = None, best: Collection[int] = ()) -> None:
    """Delete all checkpoints but `steps_to_keep`; one rank calls it, right after a commit."""
    newest = latest(directory)
    if newest is None:
        return
    paths = committed(directory)
    keep = steps_to_keep(map(step_of, paths), step_of(newest), keep_last, keep_every, best)
    for old in paths:
        if step_of(old) not in keep:
            removed = old.with_suffix(".pruned.tmp")  # a kill leaves no half of a checkpoint
            os.rename(old, removed)
            shutil.rmtree(removed)


def latest(directory: Path) -> Path | None:
    """The newest committed checkpoint, or None where there is none.

    Raises:
        CheckpointError: the pointer cannot be read, or names a directory that is gone.
    """
    pointer = directory / POINTER
    if not pointer.exists():
        return None
    try:
        name = pointer.read_text(encoding="ascii").removesuffix("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} cannot be read: {error}") from error
    if not _STEP.fullmatch(name) or not (directory / name / MANIFEST).is_file():
        raise CheckpointError(
            f"{pointer} names {name}, which is not a checkpoint; write the name of one of "
            f"{[path.name for path in committed(directory) if (path / MANIFEST).is_file()]} into it"
        )
    return directory / name
