"""State to save without an engine: every number is a function of the step, so that what is loaded says when
it was saved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parallel.checkpoint.commit import path_of
from parallel.checkpoint.latest import latest_intact
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.staging import StagingBuffers
from parallel.checkpoint.write import write
from parallel.experts.names import KINDS
from parallel.ranks.mesh import Mesh, ParallelDims
from parallel.zero.master_weights import MasterWeights


class PlainMasterWeights:
    """Stands for `MasterWeights`: two layers, whose masters and moments are what `at` made them."""

    kinds = KINDS

    def __init__(self, step: int = 0, width: int = 8) -> None:
        self.module = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 4))
        self.step = step
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.at(step)

    def at(self, step: int) -> None:
        """Be as after so many steps, in the same memory as before, as an optimizer would."""
        self.step = step
        for place, parameter in enumerate(self.module.parameters()):
            state = self.state.setdefault(parameter, {k: torch.empty(parameter.shape) for k in KINDS})
            for number, tensor in enumerate(state.values()):
                torch.arange(tensor.numel(), out=tensor.view(-1)).add_(1000.0 * step + 10 * number + place)

    def read(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self.state[parameter]

    def read_local(self, parameter: nn.Parameter) -> None:
        """Nothing is partitioned."""

    def write(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        self.state[parameter] = values

    def set_step(self, step: int) -> None:
        self.step = step

    @property
    def adam_steps(self) -> int:
        return self.step

    def equals(self, other: "PlainMasterWeights") -> bool:
        pairs = zip(self.state.values(), other.state.values(), strict=True)
        return self.step == other.step and all(torch.equal(a[k], b[k]) for a, b in pairs for k in KINDS)


def mesh_of(world_size: int = 1, rank: int = 0) -> Mesh:
    return Mesh(dims=ParallelDims(world_size=world_size), rank=rank)


def save_checkpoint(
    directory: Path,
    step: int,
    masters: MasterWeights | PlainMasterWeights,
    mesh: Mesh,
    record: dict[str, Any],
) -> Path:
    """Write and commit one checkpoint and return its directory; every rank calls it together."""
    tensors = StagingBuffers().copy(masters, mesh)  # type: ignore[arg-type]
    write(directory, step, tensors, mesh, {"adam_steps": masters.adam_steps, **record})
    return path_of(directory, step)


def save(directory: Path, step: int, width: int = 8) -> Path:
    """A checkpoint that one process wrote."""
    return save_checkpoint(directory, step, PlainMasterWeights(step, width), mesh_of(), {})


def resumed_step(directory: Path, width: int = 8) -> tuple[int, list[str]]:
    """The step that a run would go on from, whose state must be that step's, and what it would say."""
    found, masters = latest_intact(directory), PlainMasterWeights(width=width)
    if found is None:
        return 0, []
    load_checkpoint(found.path, masters, 0, found.manifest)  # type: ignore[arg-type]
    assert masters.equals(PlainMasterWeights(found.manifest["step"], width))
    return masters.step, found.notices


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
