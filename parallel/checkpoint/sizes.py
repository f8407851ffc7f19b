"""Whether a checkpoint looks intact by its manifest and the sizes of its files; nothing is read. No torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parallel.checkpoint.manifest import CheckpointError, read_manifest

Manifest = dict[str, Any]


def size_problems(path: Path) -> list[str]:
    """List what is wrong with the manifest of a checkpoint, or with the sizes of its files.

    Args:
        path: the directory of one step.
    """

    def find(manifest: Manifest) -> list[str]:
        files, _ = manifest["files"], manifest["tensors"]
        return _by_sizes(path, files)

    return problems_by(path, find)


def problems_by(path: Path, find: Callable[[Manifest], list[str]]) -> list[str]:
    """What is wrong with a checkpoint by a function of its manifest, or why the manifest cannot be used.

    Args:
        path: the directory of one step.
        find: lists what is wrong.
    """
    try:
        return find(read_manifest(path))
    except CheckpointError as error:
        return [str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")]
    except (KeyError, TypeError, AttributeError):
        return ["manifest.json is no manifest: files or tensors are missing from it"]


def _by_sizes(path: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    errors = []
    for name, entry in sorted(files.items()):
        if not (path / name).is_file():
            errors.append(f"{name} is missing")
        elif (size := (path / name).stat().st_size) != entry["bytes"]:
            errors.append(f"{name} is damaged: {size} bytes instead of {entry['bytes']}")
    return errors
