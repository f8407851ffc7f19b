"""Loading a checkpoint: fp32 master weights and optimizer states under global names, for any layout.

    checkpoints/step-00000040/   __0_0.distcp __1_0.distcp ...   one file a rank: what it owns, written once
                                 .metadata                       of torch.distributed.checkpoint
                                 manifest.json                   step, state, config, every tensor and file
    checkpoints/latest           the name of the newest committed step

A tensor's name has its kind: `exp_avg/layers.1.blocks.3.mlp.experts.5.fc1_weight`. There is one name an
expert, with the unsliced expert whether or not its ranks held slices of it; `buffer/NAME` is state of the
model, `state/NAME` of its task. The files are verified against the manifest before anything is deserialised.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.staging import NO_STATE
from parallel.checkpoint.unpickler import SafeReader
from parallel.checkpoint.verify import read_verified
from parallel.checkpoint.write import on_all_ranks
from parallel.experts.names import (
    ALL_KINDS,
    AVERAGES,
    BUFFER,
    EMA,
    KINDS,
    MASTER,
    STATE,
    by_global_name,
    own_slice,
    parameter_shapes,
    persistent_buffers,
    to_stored_dtype,
    unsliced_shape,
)
from parallel.zero.master_weights import MasterWeights

Write = Callable[[nn.Parameter, dict[str, Tensor]], None]

READ_AT_ONCE = 256 * 2**20  # bytes of tensors in memory beside the model while loading


def global_shapes(module: nn.Module, num_experts: int, kinds: Sequence[str] = KINDS) -> dict[str, list[int]]:
    """Shape of every tensor of a checkpoint by name, one name an expert, on every layout alike."""
    shapes = parameter_shapes(module, num_experts)
    buffers = {name: list(buffer.shape) for name, buffer in persistent_buffers(module).items()}
    return {f"{kind}/{name}": shape for kind in kinds for name, shape in shapes.items()} | {
        f"{BUFFER}/{name}": shape for name, shape in buffers.items()
    }


def load_checkpoint(
    path: Path,
    masters: MasterWeights,
    num_experts: int,
    manifest: dict[str, Any] | None = None,
    *,
    state: Mapping[str, Tensor] = NO_STATE,
) -> dict[str, Any]:
    """Verify a checkpoint and load it, of any layout; every rank calls it together.

    Args:
        path: of the checkpoint.
        masters: what to load into.
        num_experts: of the model.
        manifest: from `read_verified`, if it was called already.
        state: of the task, by name, as `PersistentState` holds it; filled in place.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a file is damaged, or the tensors are not exactly those of this model.
    """
    manifest = manifest or read_verified(path)
    _check_tensors(path, masters.module, num_experts, manifest, state)
    kinds = [kind for kind in masters.kinds if kind in kinds_of(manifest)]
    on_all_ranks(lambda: _read(path, masters.module, kinds, masters.write, state), f"read {path}")
    anew = set(missing_kinds(masters, manifest)) - set(AVERAGES)
    masters.set_step(0 if anew else manifest.get("adam_steps", manifest["step"]))
    return manifest


def missing_kinds(masters: MasterWeights, manifest: dict[str, Any]) -> list[str]:
    """The kinds that these master weights keep and a checkpoint has not: `load_checkpoint` initialises them.

    They are missing if its run used another optimizer or kept no moving average.
    """
    return [kind for kind in masters.kinds if kind not in kinds_of(manifest)]


def load_weights(
    path: Path,
    module: nn.Module,
    num_experts: int,
    manifest: dict[str, Any] | None = None,
    *,
    kind: str = MASTER,
) -> dict[str, Any]:
    """Verify a checkpoint and load its weights alone into a model without an engine, as `load_checkpoint`.

    `kind` is the masters', or that of one of their moving averages.
    """

    def put(parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        parameter.data.copy_(values[kind])

    manifest = manifest or read_verified(path)
    if kind not in kinds_of(manifest):
        reason = "train.ema_decay was 0" if kind == EMA else f"its task keeps no average as a {kind}"
        raise CheckpointError(f"{path} holds no moving average: {reason}; leave out --{kind}")
    _check_tensors(path, module, num_experts, manifest)
    on_all_ranks(lambda: _read(path, module, (kind,), put), f"read {path}")
    return manifest


def kinds_of(manifest: dict[str, Any]) -> Sequence[str]:
    """The kinds of tensors that a checkpoint has of each parameter."""
    present = {name.partition("/")[0] for name in manifest["tensors"]}
    return [kind for kind in ALL_KINDS if kind in present or kind == MASTER]


def _check_tensors(
    path: Path,
    module: nn.Module,
    num_experts: int,
    manifest: dict[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """The checkpoint must hold exactly the tensors of this model, and of the state unless it is None."""
    stored = manifest["tensors"]
    expected = global_shapes(module, num_experts, kinds_of(manifest))
    if state is None:
        stored = {name: shape for name, shape in stored.items() if not name.startswith(f"{STATE}/")}
    else:
        expected |= {f"{STATE}/{name}": list(tensor.shape) for name, tensor in state.items()}
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    other = [name for name in sorted(expected.keys() & stored.keys()) if expected[name] != stored[name]]
    if missing or extra or other:
        shapes = [f"{name} {stored[name]} instead of {expected[name]}" for name in other[:3]]
        raise CheckpointError(
            f"{path} is of another model: {len(missing)} tensors missing {missing[:3]}, {len(extra)} unknown "
            f"{extra[:3]}, {len(other)} of another shape {shapes}; train with the configuration beside it"
        )


def _read(
    path: Path,
    module: nn.Module,
    kinds: Sequence[str],
    write: Write,
    state: Mapping[str, Tensor] = NO_STATE,
) -> None:
    """Read every parameter of this rank, a bounded number of bytes at a time, and hand it to `write`."""
    reader = SafeReader(path)
    reader.read_metadata()  # before torch does, of which 2.11 hides why it is refused
    batch: dict[nn.Parameter, dict[str, Tensor]] = {}
    wanted: dict[str, Tensor] = {}
    parameters = list(module.named_parameters())
    for name, parameter in parameters:
        batch[parameter] = {kind: torch.empty(unsliced_shape(parameter)) for kind in kinds}
        for kind, tensor in batch[parameter].items():
            wanted |= by_global_name(kind, name, parameter, tensor)
        size = sum(tensor.nbytes for tensor in wanted.values())
        if size >= READ_AT_ONCE or parameter is parameters[-1][1]:
            dcp.load(wanted, storage_reader=reader, no_dist=True)
            for target, values in batch.items():
                write(target, {kind: own_slice(target, value).contiguous() for kind, value in values.items()})
            batch, wanted = {}, {}
    _read_replicated(reader, BUFFER, persistent_buffers(module))
    _read_replicated(reader, STATE, state)


@torch.no_grad()
def _read_replicated(reader: SafeReader, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Read tensors that every rank holds, in place."""
    wanted = {f"{kind}/{name}": to_stored_dtype(tensor).cpu().clone() for name, tensor in tensors.items()}
    if wanted:
        dcp.load(wanted, storage_reader=reader, no_dist=True)
    for name, tensor in tensors.items():
        tensor.copy_(wanted[f"{kind}/{name}"])
