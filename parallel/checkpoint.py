"""One logical checkpoint: fp32 masters and moments under global names, a manifest, an atomic commit.

    checkpoints/step-00000040/   __0_0.distcp __1_0.distcp ...   one file a rank: what it owns, written once
                                 .metadata                       of torch.distributed.checkpoint
                                 manifest.json                   step, state, config, every tensor and file
    checkpoints/latest           the name of the newest committed step

A tensor's name says what it is, whatever the layout: `exp_avg/layers.1.blocks.3.mlp.experts.5.fc1_weight`.
A step is written as `step-N.tmp`, synced, agreed on by all ranks and renamed; what a killed save leaves is
swept by the next one. The files are verified against the manifest before anything is deserialised.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from parallel.collectives import gather_objects
from parallel.expert import experts_of, global_name
from parallel.masters import KINDS, Masters
from parallel.mesh import Mesh

FORMAT = 1
MANIFEST = "manifest.json"
POINTER = "latest"
READ_AT_ONCE = 256 * 2**20  # bytes of tensors in memory beside the model while loading


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


def global_shapes(module: nn.Module, num_experts: int) -> dict[str, list[int]]:
    """Shape of every tensor of a checkpoint by name, one name an expert, on every layout alike."""
    shapes: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        if experts_of(parameter) is None:
            shapes[name] = list(parameter.shape)
        else:
            shapes |= {global_name(name, expert): list(parameter.shape[1:]) for expert in range(num_experts)}
    return {f"{kind}/{name}": shape for kind in KINDS for name, shape in shapes.items()}


def save(directory: Path, step: int, masters: Masters, mesh: Mesh, record: dict[str, Any]) -> Path:
    """Write and commit one checkpoint; every rank calls it together.

    Args:
        directory: of all checkpoints of the run.
        step: optimizer steps taken.
        masters: what to save.
        mesh: the layout.
        record: JSON-able, kept in the manifest beside ours: the run's state, configuration and versions.

    Returns:
        The committed directory.

    Raises:
        CheckpointError: a rank could not write; nothing was committed, and the checkpoints before stand.
    """
    final = directory / f"step-{step:08d}"
    partial = final.with_suffix(".tmp")
    _together(lambda: _fresh(partial) if mesh.is_first else None, f"prepare {partial}")
    owned = dict(_owned(masters, mesh))
    files = _together(lambda: _write(partial, owned, mesh.rank), f"write {partial}")
    shapes = gather_objects({name: list(tensor.shape) for name, tensor in owned.items()})
    manifest = {
        "format": FORMAT,
        "step": step,
        "files": {name: entry for part in files for name, entry in part.items()},
        "tensors": {name: shape for part in shapes for name, shape in part.items()},
        "world_size": mesh.dims.world_size,
        "ep_size": mesh.dims.ep_size,
        **record,
    }
    _together(lambda: _commit(partial, final, manifest) if mesh.is_first else None, f"commit {final}")
    return final


def prune(directory: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints; one rank calls it."""
    for old in sorted(directory.glob("step-" + "[0-9]" * 8))[:-keep_last]:
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


def load(path: Path, masters: Masters, num_experts: int) -> dict[str, Any]:
    """Verify a checkpoint and load it, whatever layout wrote it; every rank calls it together.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a file is damaged, or the tensors are not exactly those of this model.
    """
    manifest = read_manifest(path)
    _together(lambda: _verify(path, manifest["files"]), f"verify {path}")
    _check_tensors(path, global_shapes(masters.module, num_experts), manifest["tensors"])
    _together(lambda: _read(path, masters), f"read {path}")
    masters.set_step(manifest["step"])
    return manifest


def _together(action: Any, what: str) -> list[Any]:
    """Run a local action on every rank; if one fails, all raise, naming the rank and the reason."""
    try:
        outcome = (True, action())
    except (OSError, ValueError, RuntimeError, dcp.api.CheckpointException) as error:
        outcome = (False, f"{type(error).__name__}: {error}")
    outcomes = gather_objects(outcome)
    failed = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
    if failed:
        raise CheckpointError(f"could not {what}: {'; '.join(sorted(set(failed)))}")
    return [value for _, value in outcomes]


def _fresh(partial: Path) -> None:
    """Sweep what killed saves left, and make an empty directory; none is ever written into twice."""
    for stale in partial.parent.glob("step-*.tmp"):
        shutil.rmtree(stale)
    partial.mkdir(parents=True)


def _owned(masters: Masters, mesh: Mesh) -> Iterator[tuple[str, Tensor]]:
    """This rank's share of all tensors by global name: each parameter is written by one of its holders.

    All holders read a parameter together; the one that has least to write so far keeps it.
    """
    burden = {True: [0] * mesh.dims.dp_size, False: [0] * mesh.dims.world_size}
    for name, parameter in masters.module.named_parameters():
        experts = experts_of(parameter)
        holders = burden[experts is not None]
        owner = holders.index(min(holders))
        holders[owner] += parameter.numel()
        place = mesh.rank if experts is None else mesh.rank // mesh.dims.ep_size
        for kind, tensor in masters.read(parameter).items():
            if place == owner:
                yield from _by_global_name(kind, name, parameter, tensor.cpu()).items()


def _write(partial: Path, owned: dict[str, Tensor], rank: int) -> dict[str, dict[str, Any]]:
    """Write this rank's tensors; returns size and sha256 of the files that are its to vouch for."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    dcp.save(dict(owned), storage_writer=dcp.FileSystemWriter(partial), no_dist=alone)
    paths = sorted(partial.glob(f"__{rank}_*.distcp"))
    if rank == 0:
        paths.append(partial / ".metadata")
    return {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in paths}


def _commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Manifest, rename, pointer: each durable before the next."""
    _write_durably(partial / MANIFEST, json.dumps(manifest, indent=1))
    if final.exists():  # the run went back before this step and came here again
        os.rename(final, final.with_suffix(".replaced.tmp"))
    os.rename(partial, final)
    _sync_directory(final.parent)
    fresh = final.parent / f"{POINTER}.tmp"
    _write_durably(fresh, final.name + "\n")
    os.replace(fresh, final.parent / POINTER)
    _sync_directory(final.parent)


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


def _verify(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check this rank's share of the files against the manifest."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for name, entry in sorted(files.items())[rank::world]:
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} is damaged: {size} bytes instead of {entry['bytes']}")
        if _sha256(path / name) != entry["sha256"]:
            raise CheckpointError(f"{name} is damaged: its sha256 is not the manifest's")


def _check_tensors(path: Path, expected: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """The checkpoint must hold exactly the tensors of this model."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    if missing or extra or other:
        shapes = [f"{name} {found[name]} instead of {expected[name]}" for name in other[:3]]
        raise CheckpointError(
            f"{path} is of another model: {len(missing)} tensors missing {missing[:3]}, {len(extra)} unknown "
            f"{extra[:3]}, {len(other)} of another shape {shapes}; train with the configuration beside it"
        )


def _read(path: Path, masters: Masters) -> None:
    """Read every parameter of this rank, a bounded number of bytes at a time."""
    batch: dict[nn.Parameter, dict[str, Tensor]] = {}
    wanted: dict[str, Tensor] = {}
    parameters = list(masters.module.named_parameters())
    for name, parameter in parameters:
        batch[parameter] = {kind: torch.empty(parameter.shape) for kind in KINDS}
        for kind, tensor in batch[parameter].items():
            wanted |= _by_global_name(kind, name, parameter, tensor)
        size = sum(tensor.nbytes for values in batch.values() for tensor in values.values())
        if size >= READ_AT_ONCE or parameter is parameters[-1][1]:
            dcp.load(wanted, storage_reader=_Reader(path), no_dist=True)
            for target, values in batch.items():
                masters.write(target, values)
            batch, wanted = {}, {}


def _by_global_name(kind: str, name: str, parameter: nn.Parameter, tensor: Tensor) -> dict[str, Tensor]:
    """A parameter's tensor, or each expert's slice of it, under the names of the checkpoint."""
    experts = experts_of(parameter)
    if experts is None:
        return {f"{kind}/{name}": tensor}
    pieces = zip(experts, tensor.unbind(0), strict=True)
    return {f"{kind}/{global_name(name, expert)}": piece for expert, piece in pieces}


class _Reader(dcp.FileSystemReader):
    """Reads checkpoints without unpickling freely: the metadata may name plain data types only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _PlainUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every global that torch.distributed.checkpoint does not need to describe tensors."""

    def find_class(self, module: str, name: str) -> Any:
        described = module.startswith("torch.distributed.checkpoint.") and "." not in name
        plain = (module, name) in {
            ("torch", "Size"),
            ("torch", "float32"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
        }
        if not (described or plain):
            raise CheckpointError(f"its .metadata names {module}.{name}, which no checkpoint needs: refused")
        return super().find_class(module, name)
