"""How files become a checkpoint (manifest, sync, rename, pointer), and how they are trusted again.

A step is written as `step-N.tmp`, which no reader looks at. Once every file is durable, the manifest with
their sizes and checksums is written, the directory renamed and the pointer replaced, each durable before the
next. A kill at any point leaves the last committed step in force. The manifest holds its own checksum too, so
that a bit of any file that changes later is found.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from parallel.durable import atomic_write, sweep_temporaries, sync_directory

FORMAT = 2
UNSEALED = 1  # the format before manifests had a checksum of their own; still read
MANIFEST = "manifest.json"
POINTER = "latest"
_STEP = re.compile(r"step-([0-9]{8,})", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9_.]*[A-Za-z0-9_]", re.ASCII)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies once it is committed."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a committed checkpoint, by its name."""
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def committed(directory: Path) -> list[Path]:
    """Every directory that was committed, by step; some may have been damaged since."""
    found = [path for path in directory.glob("step-*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of)


def open_partial(partial: Path) -> None:
    """Sweep what killed saves left, and make an empty directory; none is ever written into twice.

    Only the run that holds the directory's lock calls it, and never while a save of its own is under way.
    """
    for stale in partial.parent.glob("step-*.tmp"):
        shutil.rmtree(stale)
    sweep_temporaries(partial.parent, lambda name: name == POINTER)
    partial.mkdir(parents=True)


def describe(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of each file, by name, as the manifest keeps them."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}


def commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Manifest, rename, pointer: each durable before the next."""
    atomic_write(partial / MANIFEST, json.dumps(sealed(manifest), indent=1), sync="directory")
    replaced = final.with_suffix(".replaced.tmp")
    if final.exists():  # the run went back before this step and came here again
        os.rename(final, replaced)
    os.rename(partial, final)
    sync_directory(final.parent)
    point_to(final)
    if replaced.exists():
        shutil.rmtree(replaced)


def point_to(path: Path) -> None:
    """Make a committed checkpoint the one to go on from, durably."""
    atomic_write(path.parent / POINTER, path.name + "\n", sync="directory")


def kept(steps: Iterable[int], current: int, keep_last: int, keep_every: int | None) -> set[int]:
    """Which checkpoints stay: the last ones of the run, and all at multiples of `keep_every`.

    Args:
        steps: of all checkpoints there are.
        current: the one to go on from, which always stays. After going back there may be later ones, of a
            branch that was left: they count as older than the run's own.
        keep_last: how many, at least 1.
        keep_every: steps; None keeps no others.
    """
    by_age = sorted(steps, key=lambda step: (step <= current, step))
    return {step for step in by_age if keep_every and step % keep_every == 0}.union(
        by_age[-max(1, keep_last) :], [current]
    )


def prune(directory: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Delete what `kept` does not name; one rank calls it, right after a commit."""
    newest = latest(directory)
    if newest is None:
        return
    paths = committed(directory)
    staying = kept(map(step_of, paths), step_of(newest), keep_last, keep_every)
    for old in paths:
        if step_of(old) not in staying:
            leaving = old.with_suffix(".pruned.tmp")  # a kill leaves no half of a checkpoint
            os.rename(old, leaving)
            shutil.rmtree(leaving)


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


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with its format and the checksum of all it says."""
    plain = json.loads(json.dumps({"format": FORMAT, **manifest}))
    plain.pop("sha256", None)
    return {**plain, "sha256": _seal(plain)}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a committed checkpoint.

    Raises:
        CheckpointError: it is missing, unreadable, damaged, of another format, or no manifest at all.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: its {MANIFEST} cannot be read ({error})"
        ) from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} is not a checkpoint: its {MANIFEST} is no JSON object")
    version = manifest.get("format")
    if version not in (FORMAT, UNSEALED) or isinstance(version, bool):
        raise CheckpointError(f"{path} has checkpoint format {version}; this version reads {FORMAT}")
    if version != UNSEALED:
        plain = {name: value for name, value in manifest.items() if name != "sha256"}
        if manifest.get("sha256") != _seal(plain):
            raise CheckpointError(f"{path}: {MANIFEST} is damaged: its sha256 is not what it says")
    _check_entries(path, manifest)
    return manifest


def verify(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check files against what the manifest says of them.

    Raises:
        CheckpointError: one is damaged; OSError: one is missing.
    """
    for name, entry in files.items():
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} is damaged: {size} bytes instead of {entry['bytes']}")
        if _sha256(path / name) != entry["sha256"]:
            raise CheckpointError(f"{name} is damaged: its sha256 is not the manifest's")


def _check_entries(path: Path, manifest: dict[str, Any]) -> None:
    """The entries that readers rely on are there and of their types; names of files are plain names."""

    def is_file(name: str, entry: Any) -> bool:
        return bool(_FILE.fullmatch(name)) and isinstance(entry, dict) and _is_count(entry.get("bytes"))

    def is_shape(shape: Any) -> bool:
        return isinstance(shape, list) and all(map(_is_count, shape))

    files, tensors = manifest.get("files"), manifest.get("tensors", {})
    rules: dict[str, Callable[[], bool]] = {
        "step": lambda: _is_count(manifest.get("step")),
        "files": lambda: isinstance(files, dict) and all(is_file(*item) for item in files.items()),
        "sha256 of a file": lambda: all(isinstance(e.get("sha256"), str) for e in files.values()),  # type: ignore[union-attr]
        "tensors": lambda: isinstance(tensors, dict) and all(map(is_shape, tensors.values())),
    }
    for name, holds in rules.items():
        if not holds():
            raise CheckpointError(f"{path} is not a checkpoint: {MANIFEST} has no valid entry for {name}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seal(plain: dict[str, Any]) -> str:
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
