"""Checks that the files of a checkpoint are intact: all ranks together at a load, one process for tools."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from parallel.checkpoint.manifest import CheckpointError, file_sha256, read_manifest
from parallel.checkpoint.reader import METADATA, read_metadata
from parallel.checkpoint.sizes import Manifest, problems_by
from parallel.checkpoint.write import on_all_ranks

THREADS = 4  # that check files at once; hashing releases the interpreter's lock


def verify_files(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check files against what the manifest says of them.

    Raises:
        CheckpointError: one is damaged; OSError: one is missing.
    """
    for name, entry in files.items():
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} is damaged: {size} bytes instead of {entry['bytes']}")
        if file_sha256(path / name) != entry["sha256"]:
            raise CheckpointError(f"{name} is damaged: its sha256 is not the manifest's")


def read_verified(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint and verify its files, of which every rank verifies a part.

    Raises:
        CheckpointError: it is no checkpoint, or a file is damaged.
    """
    (manifest, *_) = on_all_ranks(lambda: read_manifest(path), f"read {path}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own = dict(sorted(manifest["files"].items())[rank::world])
    on_all_ranks(lambda: verify_files(path, own), f"verify {path}")
    if METADATA not in manifest["files"] or "tensors" not in manifest:
        raise CheckpointError(f"{path} is not a checkpoint: its manifest describes no tensors")
    return manifest


def problems(path: Path, *, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """List everything that is wrong with a checkpoint; nothing is deserialised before it is verified.

    Every file is read for its sha256, and the tensors' names are compared.

    Args:
        path: the directory of one step.
        progress: called with the bytes read and the bytes of all files.
    """

    def find(manifest: Manifest) -> list[str]:
        files, tensors = manifest["files"], manifest["tensors"]
        return _by_files(path, files, progress) or tensor_problems(path, tensors)

    return problems_by(path, find)


def _by_files(
    path: Path, files: Mapping[str, dict[str, Any]], progress: Callable[[int, int], None] | None
) -> list[str]:
    errors, done, total = [], 0, sum(entry["bytes"] for entry in files.values())
    with ThreadPoolExecutor(THREADS) as pool:
        checks = {pool.submit(verify_files, path, {name: entry}): name for name, entry in files.items()}
        for check in as_completed(checks):
            error = check.exception()
            if isinstance(error, FileNotFoundError):
                errors.append(f"{checks[check]} is missing")
            elif isinstance(error, CheckpointError):
                errors.append(str(error))
            elif error is not None:
                errors.append(f"{checks[check]} cannot be read: {error}")
            done += files[checks[check]]["bytes"]
            if progress:
                progress(done, total)
    return sorted(errors)


def tensor_problems(path: Path, tensors: Mapping[str, list[int]]) -> list[str]:
    """How the tensors in .metadata, which can name our types only, differ from those of the manifest."""
    described = read_metadata(path).state_dict_metadata
    errors = [f"the tensor {name} is in no file" for name in sorted(tensors.keys() - described.keys())]
    errors += [f"the tensor {name} is unknown" for name in sorted(described.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & described.keys()):
        entry = described[name]
        if not isinstance(entry, TensorStorageMetadata):
            errors.append(f"{name} is no tensor")
        elif list(entry.size) != tensors[name]:
            errors.append(f"{name} has shape {list(entry.size)}, the manifest says {tensors[name]}")
    return errors
