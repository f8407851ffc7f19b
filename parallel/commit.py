"""How files become a checkpoint (manifest, sync, rename, pointer), and how they are trusted again.

A step is written as `step-N.tmp`, which no reader looks at. Once every file is durable, the manifest with
their sizes and checksums is written, the directory renamed and the pointer replaced, each durable before the
next. A kill at any point leaves the last committed step in force.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
POINTER = "latest"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


def open_partial(partial: Path) -> None:
    """Sweep what killed saves left, and make an empty directory; none is ever written into twice."""
    for stale in partial.parent.glob("step-*.tmp"):
        shutil.rmtree(stale)
    partial.mkdir(parents=True)


def describe(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of each file, by name, as the manifest keeps them."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}


def commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Manifest, rename, pointer: each durable before the next."""
    _write_durably(partial / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=1))
    if final.exists():  # the run went back before this step and came here again
        os.rename(final, final.with_suffix(".replaced.tmp"))
    os.rename(partial, final)
    _sync_directory(final.parent)
    fresh = final.parent / f"{POINTER}.tmp"
    _write_durably(fresh, final.name + "\n")
    os.replace(fresh, final.parent / POINTER)
    _sync_directory(final.parent)


def prune(directory: Path, keep_last: int) -> None:
    """Delete all but the last `keep_last` (at least 1) that were committed; one rank calls it.

    After going back to an earlier step the last committed is not the one of the highest step.
    """
    committed = directory.glob("step-" + "[0-9]" * 8)
    by_age = sorted(committed, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name))
    for old in by_age[: -max(1, keep_last)]:
        shutil.rmtree(old)


def latest(directory: Path) -> Path | None:
    """The newest committed checkpoint, or None where there is none.

    Raises:
        CheckpointError: the pointer names a directory that is gone.
    """
    pointer = directory / POINTER
    if not pointer.exists():
        return None
    found = directory / pointer.read_text().strip()
    if not (found / MANIFEST).is_file():
        raise CheckpointError(
            f"{pointer} names {found.name}, which is not a checkpoint; write the name of one of "
            f"{sorted(p.name for p in directory.glob('step-*') if (p / MANIFEST).is_file())} into it"
        )
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a committed checkpoint.

    Raises:
        CheckpointError: it is missing, unreadable or of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: its {MANIFEST} cannot be read ({error})"
        ) from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {manifest.get('format')}; this version reads {FORMAT}"
        )
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


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
