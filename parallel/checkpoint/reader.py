"""A committed checkpoint as tensors by name, each read when it is asked for: no model, no process group.

    stored = Stored(Path("runs/x/checkpoints/step-00000040"))
    stored["master/norm.weight"]       # one tensor of memory, whatever layout wrote it
    stored.kind("exp_avg")             # {"norm.weight": "exp_avg/norm.weight", ...}

`problems` says what is wrong with one, and `write` makes one out of tensors: for tools, in one process.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from parallel.checkpoint.commit import CheckpointError, commit, describe, open_partial, read_manifest, verify
from parallel.checkpoint.unpickler import DAMAGE, PlainReader

THREADS = 4  # that check files at once; hashing lets go of the interpreter's lock


class Stored(Mapping[str, Tensor]):
    """The tensors of one committed checkpoint; its files are taken to be sound, see `problems`.

    Raises:
        CheckpointError: there is no checkpoint, or, of a tensor, it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.shapes: dict[str, list[int]] = self.manifest["tensors"]

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        file, offset, length = self._place(name)
        try:
            with (self.path / file).open("rb") as stream:
                stream.seek(offset)
                packed = io.BytesIO(stream.read(length))
            tensor = torch.load(packed, map_location="cpu", weights_only=True)
        except DAMAGE as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read, {file} is damaged: {error}") from None
        if not isinstance(tensor, Tensor) or list(tensor.shape) != self.shapes[name]:
            raise CheckpointError(f"{self.path}: {name} in {file} is not what the manifest says")
        return tensor

    def kinds(self) -> list[str]:
        """What the checkpoint holds of each parameter, and of buffers: `master`, `exp_avg`, `buffer` ..."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.shapes))

    def kind(self, kind: str) -> dict[str, str]:
        """The names of the tensors of one kind, by the names of what they are of."""
        named = {name.partition("/")[2]: name for name in self.shapes if name.partition("/")[0] == kind}
        return dict(sorted(named.items()))

    @cached_property
    def metadata(self) -> Metadata:
        """What torch.distributed.checkpoint wrote down of the files, without unpickling freely."""
        return read_metadata(self.path)

    @cached_property
    def _places(self) -> dict[str, Any]:
        return {index.fqn: info for index, info in (self.metadata.storage_data or {}).items()}

    def _place(self, name: str) -> tuple[str, int, int]:
        """File, offset and length of a tensor; the file must be one that the manifest vouches for."""
        info = self._places.get(name)
        if info is None or info.relative_path not in self.manifest["files"]:
            raise CheckpointError(f"{self.path}: no file of the manifest holds {name}")
        return info.relative_path, info.offset, info.length


def read_metadata(path: Path) -> Metadata:
    """The description of a checkpoint's files.

    Raises:
        CheckpointError: it is missing or damaged, or names what no checkpoint needs.
    """
    try:
        return PlainReader(path).read_metadata()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def problems(
    path: Path, *, deep: bool = True, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Everything that is wrong with a checkpoint; nothing is deserialised but what its manifest vouches for.

    Args:
        path: the directory of one step.
        deep: read every file for its sha256 and compare the tensors' names; otherwise sizes alone.
        progress: told of bytes read and bytes in all.
    """
    try:
        manifest = read_manifest(path)
        files, tensors = manifest["files"], manifest["tensors"]
        found = _by_files(path, files, progress) if deep else _by_sizes(path, files)
        return found or (tensor_problems(path, tensors) if deep else [])
    except CheckpointError as error:
        return [str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")]
    except (KeyError, TypeError, AttributeError):
        return ["manifest.json is no manifest: files or tensors are missing from it"]


def _by_sizes(path: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    for name, entry in sorted(files.items()):
        if not (path / name).is_file():
            found.append(f"{name} is missing")
        elif (size := (path / name).stat().st_size) != entry["bytes"]:
            found.append(f"{name} is damaged: {size} bytes instead of {entry['bytes']}")
    return found


def _by_files(
    path: Path, files: Mapping[str, dict[str, Any]], progress: Callable[[int, int], None] | None
) -> list[str]:
    found, done, total = [], 0, sum(entry["bytes"] for entry in files.values())
    with ThreadPoolExecutor(THREADS) as pool:
        checks = {pool.submit(verify, path, {name: entry}): name for name, entry in files.items()}
        for check in as_completed(checks):
            error = check.exception()
            if isinstance(error, FileNotFoundError):
                found.append(f"{checks[check]} is missing")
            elif isinstance(error, CheckpointError):
                found.append(str(error))
            elif error is not None:
                found.append(f"{checks[check]} cannot be read: {error}")
            done += files[checks[check]]["bytes"]
            if progress:
                progress(done, total)
    return sorted(found)


def tensor_problems(path: Path, tensors: Mapping[str, list[int]]) -> list[str]:
    """How the tensors in .metadata, which can name our types only, differ from those of the manifest."""
    described = read_metadata(path).state_dict_metadata
    found = [f"the tensor {name} is in no file" for name in sorted(tensors.keys() - described.keys())]
    found += [f"the tensor {name} is unknown" for name in sorted(described.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & described.keys()):
        entry = described[name]
        if not isinstance(entry, TensorStorageMetadata):
            found.append(f"{name} is no tensor")
        elif list(entry.size) != tensors[name]:
            found.append(f"{name} has shape {list(entry.size)}, the manifest says {tensors[name]}")
    return found


def write(directory: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Commit a checkpoint made of tensors at hand, in one process, as `checkpoint.save` does from an engine.

    Args:
        directory: of all checkpoints of a run.
        step: optimizer steps taken.
        tensors: fp32 or int64, by the names of a checkpoint.
        record: JSON-able, kept in the manifest: the run's state, configuration and versions.
    """
    final = directory / f"step-{step:08d}"
    partial = final.with_suffix(".tmp")
    try:
        open_partial(partial)
        with warnings.catch_warnings():  # that it takes this for the only process, which it is
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(partial), no_dist=True)
        manifest = {
            "step": step,
            "files": describe([*sorted(partial.glob("*.distcp")), partial / ".metadata"]),
            "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "world_size": 1,
            "ep_size": 1,
            "expert_slices": 1,
            **record,
        }
        commit(partial, final, manifest)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        raise CheckpointError(f"could not write {final}: {error}") from error
    return final
