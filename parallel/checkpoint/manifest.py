"""The manifest of a checkpoint: the step, the size and SHA-256 of every file, the shape of every tensor.

It holds a checksum of itself too, so that a bit of any file that changes later is detected.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT = 2
FORMAT_WITHOUT_CHECKSUM = 1  # of the manifest itself; still read
MANIFEST = "manifest.json"
_FILE = re.compile(r"[A-Za-z0-9_.]*[A-Za-z0-9_]", re.ASCII)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


def describe(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of each file, by name, as the manifest keeps them."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}


def with_checksum(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with its format and the checksum of all it says."""
    plain = json.loads(json.dumps({"format": FORMAT, **manifest}))
    plain.pop("sha256", None)
    return {**plain, "sha256": _checksum(plain)}


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
    if "format" not in manifest:
        raise CheckpointError(f"{path} is not a checkpoint: its {MANIFEST} is that of something else")
    version = manifest["format"]
    if version not in (FORMAT, FORMAT_WITHOUT_CHECKSUM) or isinstance(version, bool):
        raise CheckpointError(f"{path} has checkpoint format {version}; this version reads {FORMAT}")
    if version != FORMAT_WITHOUT_CHECKSUM:
        plain = {name: value for name, value in manifest.items() if name != "sha256"}
        if manifest.get("sha256") != _checksum(plain):
            raise CheckpointError(f"{path}: {MANIFEST} is damaged: its sha256 is not what it says")
    _check_entries(path, manifest)
    return manifest


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


def _checksum(plain: dict[str, Any]) -> str:
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
