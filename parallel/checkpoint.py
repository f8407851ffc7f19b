"""One logical checkpoint: fp32 masters and moments under global names, whatever the layout.

    checkpoints/step-00000040/   __0_0.distcp __1_0.distcp ...   one file a rank: what it owns, written once
                                 .metadata                       of torch.distributed.checkpoint
                                 manifest.json                   step, state, config, every tensor and file
    checkpoints/latest           the name of the newest committed step

A tensor's name says what it is: `exp_avg/layers.1.blocks.3.mlp.experts.5.fc1_weight`, one name an expert, and
the whole expert whether or not its ranks held slices of it; `buffer/NAME` is state that no optimizer knows.
The files are verified against the manifest before anything is deserialised.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from parallel.collectives import RanksError, agree, all_to_all, gather_objects
from parallel.commit import CheckpointError, commit, describe, open_partial, read_manifest, verify
from parallel.expert import ExpertSlice, experts_of, global_name, sliced_of
from parallel.masters import KINDS, MASTER, Masters
from parallel.mesh import Mesh
from parallel.plain import PlainReader
from parallel.tensors import held, parameter_shapes, persistent_buffers, whole_shape

T = TypeVar("T")
Write = Callable[[nn.Parameter, dict[str, Tensor]], None]

BUFFER = "buffer"
READ_AT_ONCE = 256 * 2**20  # bytes of tensors in memory beside the model while loading


def global_shapes(module: nn.Module, num_experts: int) -> dict[str, list[int]]:
    """Shape of every tensor of a checkpoint by name, one name an expert, on every layout alike."""
    shapes = parameter_shapes(module, num_experts)
    buffers = {name: list(buffer.shape) for name, buffer in persistent_buffers(module).items()}
    return {f"{kind}/{name}": shape for kind in KINDS for name, shape in shapes.items()} | {
        f"{BUFFER}/{name}": shape for name, shape in buffers.items()
    }


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
    _together(lambda: open_partial(partial) if mesh.is_first else None, f"prepare {partial}")
    owned = dict(_owned(masters, mesh))
    files = _together(lambda: _write(partial, owned, mesh.rank), f"write {partial}")
    shapes = gather_objects({name: list(tensor.shape) for name, tensor in owned.items()})
    manifest = {
        "step": step,
        "files": {name: entry for part in files for name, entry in part.items()},
        "tensors": {name: shape for part in shapes for name, shape in part.items()},
        "world_size": mesh.dims.world_size,
        "ep_size": mesh.dims.ep_size,
        "expert_slices": mesh.dims.expert_slices,
        **record,
    }
    _together(lambda: commit(partial, final, manifest) if mesh.is_first else None, f"commit {final}")
    return final


def load(path: Path, masters: Masters, num_experts: int) -> dict[str, Any]:
    """Verify a checkpoint and load it, whatever layout wrote it; every rank calls it together.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a file is damaged, or the tensors are not exactly those of this model.
    """
    manifest = _read_verified(path, masters.module, num_experts)
    _together(lambda: _read(path, masters.module, KINDS, masters.write), f"read {path}")
    masters.set_step(manifest["step"])
    return manifest


def load_weights(path: Path, module: nn.Module, num_experts: int) -> dict[str, Any]:
    """Verify a checkpoint and load the master weights alone into a model without an engine, as `load`."""

    def write(parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        parameter.data.copy_(values[MASTER])

    manifest = _read_verified(path, module, num_experts)
    _together(lambda: _read(path, module, (MASTER,), write), f"read {path}")
    return manifest


def _read_verified(path: Path, module: nn.Module, num_experts: int) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are whole and whose tensors are those of the model."""
    (manifest, *_) = _together(lambda: read_manifest(path), f"read {path}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = dict(sorted(manifest["files"].items())[rank::world])
    _together(lambda: verify(path, share), f"verify {path}")
    _check_tensors(path, global_shapes(module, num_experts), manifest["tensors"])
    return manifest


def _together(action: Callable[[], T], what: str) -> list[T]:
    """Run a part of saving or loading on every rank; if it fails on one, all raise."""
    try:
        return agree(action, (OSError, ValueError, RuntimeError, CheckpointException))
    except RanksError as error:
        raise CheckpointError(f"could not {what}: {error}") from error


def _owned(masters: Masters, mesh: Mesh) -> Iterator[tuple[str, Tensor]]:
    """This rank's share of all tensors by global name: each parameter is written by one of its holders.

    All holders read a parameter together, and the slices of one copy of an expert come together; the one
    that has least to write so far keeps it.
    """
    slices = mesh.dims.expert_slices
    burden = {True: [0] * mesh.dims.dp_size * slices, False: [0] * mesh.dims.world_size}
    for name, parameter in masters.module.named_parameters():
        experts = experts_of(parameter)
        holders = burden[experts is not None]
        owner = holders.index(min(holders))
        holders[owner] += math.prod(whole_shape(parameter))
        place = mesh.rank if experts is None else mesh.rank // mesh.dims.ep_size * slices + mesh.rank % slices
        for kind, tensor in masters.read(parameter).items():
            if sliced_of(parameter) is not None and place // slices == owner // slices:
                tensor = _joined(parameter, tensor, owner % slices, mesh)
            if place == owner:
                yield from _by_global_name(kind, name, parameter, tensor.cpu()).items()
    if mesh.is_first:
        for name, buffer in persistent_buffers(masters.module).items():
            yield f"{BUFFER}/{name}", _as_stored(buffer).cpu()


@torch.no_grad()
def _joined(parameter: nn.Parameter, tensor: Tensor, owner: int, mesh: Mesh) -> Tensor:
    """One tensor of sliced experts, whole, at the slice numbered `owner`; all slices of a block call it.

    Elsewhere it is what was given.
    """
    sliced, slices = sliced_of(parameter), mesh.dims.expert_slices
    if sliced is None or slices == 1:
        return tensor
    shapes = [list(tensor.shape) for _ in range(slices)]
    for number, shape in enumerate(shapes):
        shape[sliced.dim] = len(ExpertSlice(number, number + 1, slices).range(sliced.size))
    here = mesh.rank % slices
    send = [tensor.numel() if number == owner else 0 for number in range(slices)]
    receive = [math.prod(shape) if here == owner else 0 for shape in shapes]
    flat = all_to_all(tensor.reshape(-1), send, receive, mesh.exchange_groups[slices].gather)
    if here != owner:
        return tensor
    pieces = zip(flat.split(receive), shapes, strict=True)
    return torch.cat([piece.view(shape) for piece, shape in pieces], dim=sliced.dim)


def _as_stored(buffer: Tensor) -> Tensor:
    """Whole numbers as int64, all else as fp32: the only types of a checkpoint."""
    return buffer.float() if buffer.is_floating_point() else buffer.long()


def _write(partial: Path, owned: dict[str, Tensor], rank: int) -> dict[str, dict[str, Any]]:
    """Write this rank's tensors; returns size and sha256 of the files that are its to vouch for."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    dcp.save(dict(owned), storage_writer=dcp.FileSystemWriter(partial), no_dist=alone)
    paths = sorted(partial.glob(f"__{rank}_*.distcp"))
    if rank == 0:
        paths.append(partial / ".metadata")
    return describe(paths)


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


def _read(path: Path, module: nn.Module, kinds: Sequence[str], write: Write) -> None:
    """Read every parameter of this rank, a bounded number of bytes at a time, and hand it to `write`."""
    batch: dict[nn.Parameter, dict[str, Tensor]] = {}
    wanted: dict[str, Tensor] = {}
    parameters = list(module.named_parameters())
    for name, parameter in parameters:
        batch[parameter] = {kind: torch.empty(whole_shape(parameter)) for kind in kinds}
        for kind, tensor in batch[parameter].items():
            wanted |= _by_global_name(kind, name, parameter, tensor)
        size = sum(tensor.nbytes for tensor in wanted.values())
        if size >= READ_AT_ONCE or parameter is parameters[-1][1]:
            dcp.load(wanted, storage_reader=PlainReader(path), no_dist=True)
            for target, values in batch.items():
                write(target, {kind: held(target, value).contiguous() for kind, value in values.items()})
            batch, wanted = {}, {}
    _read_buffers(path, module)


@torch.no_grad()
def _read_buffers(path: Path, module: nn.Module) -> None:
    buffers = persistent_buffers(module)
    wanted = {f"{BUFFER}/{name}": _as_stored(buffer).cpu().clone() for name, buffer in buffers.items()}
    if wanted:
        dcp.load(wanted, storage_reader=PlainReader(path), no_dist=True)
    for name, buffer in buffers.items():
        buffer.copy_(wanted[f"{BUFFER}/{name}"])


def _by_global_name(kind: str, name: str, parameter: nn.Parameter, tensor: Tensor) -> dict[str, Tensor]:
    """A parameter's tensor, or each expert's slice of it, under the names of the checkpoint."""
    experts = experts_of(parameter)
    if experts is None:
        return {f"{kind}/{name}": tensor}
    pieces = zip(experts, tensor.unbind(0), strict=True)
    return {f"{kind}/{global_name(name, expert)}": piece for expert, piece in pieces}
