"""A run that is saved, loaded by any layout and goes on: what the tests of checkpoints compare."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parallel.checkpoint.load import load_checkpoint
from parallel.zero.master_weights import MasterWeights
from tests.parallel.checkpoint.saving import save_checkpoint
from tests.parallel.training import EXPERTS, Layout, Run, Trace, by_global_name, gather_tensors

SAVED = 3  # steps before the checkpoint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run, as rank 0 saw it."""

    state: dict[str, Tensor]  # masters and moments by global name, at the checkpoint
    trace: Trace  # of the steps after it


def state_of(masters: MasterWeights) -> dict[str, Tensor]:
    """Everything the optimizer knows, by the names of the checkpoint; the holders agree bit by bit."""
    mine: dict[str, Tensor] = {}
    for name, parameter in masters.module.named_parameters():
        for kind, value in masters.read(parameter).items():
            mine |= {f"{kind}/{key}": piece for key, piece in by_global_name(name, parameter, value).items()}
    whole: dict[str, Tensor] = {}
    for part in gather_tensors(mine):
        for name, value in part.items():
            assert torch.equal(value, whole.setdefault(name, value)), name
    return whole


def save_and_go_on(directory: Path, layouts: list[Layout], then: int) -> list[Outcome]:
    """Steps, a checkpoint in a directory of the layout's number, more steps."""
    found = []
    for number, layout in enumerate(layouts):
        run = Run.start(layout)
        masters = MasterWeights(run.engine.deepspeed)
        run.train(SAVED)
        state = state_of(masters)
        save_checkpoint(directory / str(number), SAVED, masters, run.mesh, {"state": {"images": 48}})
        found.append(Outcome(state=state, trace=run.train(then)))
    return found


def load_and_go_on(path: Path, layouts: list[Layout], then: int) -> list[Outcome]:
    """What each layout makes of a checkpoint."""
    return [_loaded(path, layout, then) for layout in layouts]


def load_each(paths: list[Path], layout: Layout, then: int) -> list[Outcome]:
    """What one layout makes of many checkpoints."""
    return [_loaded(path, layout, then) for path in paths]


def _loaded(path: Path, layout: Layout, then: int) -> Outcome:
    run = Run.start(layout)
    masters = MasterWeights(run.engine.deepspeed)
    run.next_step = load_checkpoint(path, masters, EXPERTS)["step"]
    return Outcome(state=state_of(masters), trace=run.train(then))


def differing(found: Outcome, expected: Outcome) -> list[str]:
    """Names of the tensors that are not bit for bit the same."""
    assert found.state.keys() == expected.state.keys()
    return [name for name, value in expected.state.items() if not torch.equal(value, found.state[name])]
