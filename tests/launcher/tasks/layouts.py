"""Runs of a task on several layouts, compared: what the tests of tasks share."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.checkpoint.reader import CheckpointReader
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import CONFIG, command, only, run_alone, steps

BRIEF = [(2, 2, 2, 4)]  # ranks, ep_size, ZeRO stage, micro-batch
LAYOUTS = [(2, 2, stage, 4) for stage in range(4)] + [(2, 1, stage, 2) for stage in range(4)]
LAYOUTS += [(4, ep_size, stage, 2) for ep_size in (2, 4) for stage in range(4)] + [(1, 1, 0, 2), (1, 1, 3, 8)]

on_every_layout = pytest.mark.parametrize(
    ("ranks", "ep_size", "stage", "micro"),
    [*BRIEF, *(pytest.param(*one, marks=pytest.mark.slow) for one in LAYOUTS if one not in BRIEF)],
)


def layout(stage: int, ep_size: int, micro: int) -> list[str]:
    """The options of a layout."""
    return [f"parallel.zero_stage={stage}", f"parallel.ep_size={ep_size}", f"train.micro_batch_size={micro}"]


def plain_sgd(lr: float, steps: int) -> tuple[str, ...]:
    """SGD without momentum, so that the change of the weights in a step is the gradient times `lr`."""
    return (
        f"train.duration={steps} steps",
        f"train.eval_every={steps} steps",
        "train.global_batch_size=8",
        "checkpoint.every=1 steps",
        "checkpoint.keep_last=9",
        "optim.optimizer=sgd",
        "optim.momentum=0.0",
        "optim.weight_decay=0.0",
        "optim.max_grad_norm=0.0",
        "optim.warmup=0 steps",
        "optim.schedule=cosine",
        "optim.warmup_ratio=null",
        f"optim.base_lr={64 * lr}",  # of 512 images
        f"optim.min_lr={64 * lr}",
    )


def task_options(task: Sequence[str], shards: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The overrides of a tiny run of a task, whose own ones are `task`."""
    return [*task, f"data.train={shards}/train", f"data.val={shards}/val", f"run_dir={run_dir}", *more]


def task_line(options: Sequence[str]) -> list[str]:
    """The command of a run, which goes on from its checkpoint."""
    return ["train", str(CONFIG), "--resume", "auto", *options]


@dataclass(frozen=True)
class Watcher:
    """A hook that writes to a file what is seen of the trainer before each step and at the end."""

    path: Path
    look: Callable[[Any], list[Any]]  # of a module, so that ranks can import it; called on every rank

    def __call__(self, event: str, trainer: Any) -> None:
        if event not in ("step", "end"):
            return
        seen = self.look(trainer)
        if trainer.engine.mesh.rank == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(seen) + "\n")

    def seen(self) -> list[list[Any]]:
        """What was written, in order."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def train_on_ranks(ranks: int, line: Sequence[str]) -> None:
    """Run a command on so many ranks, which all end well."""
    outcomes = run_on_ranks(command, ranks, *line)
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err


def kill_and_resume(line: Sequence[str]) -> None:
    """Train on one rank that is killed after its second step, and again to the end."""
    with pytest.raises(RankError, match="died"):
        run_on_ranks(partial(command, kill=("step", 2)), 1, *line)
    run_alone(*line)


def assert_same_run(
    run: Path, wanted: Path, figures: Sequence[str], last: int, kinds: Sequence[str] = ("master",)
) -> None:
    """Bit for bit: these figures of every step, and the tensors of these kinds after the last one."""
    assert [only(record, figures) for record in steps(run)] == [
        only(record, figures) for record in steps(wanted)
    ]
    for kind in kinds:
        found, tensors = stored(run, last, kind), stored(wanted, last, kind)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def stored(run: Path, step: int, kind: str) -> dict[str, Tensor]:
    """The tensors of a kind in a checkpoint."""
    reader = CheckpointReader(run / "checkpoints" / f"step-{step:08d}")
    return {name: reader[full] for name, full in reader.kind(kind).items()}


def results(run: Path) -> Path:
    """What `eval` has written."""
    (directory,) = (run / "eval").glob("step-*")
    return directory


def assert_same_gradients(run: Path, wanted: Path, lr: float) -> None:
    """Those of the second step of `plain_sgd` within 1e-4."""
    before, after = (stored(run, step, "master") for step in (1, 2))
    before2, after2 = (stored(wanted, step, "master") for step in (1, 2))
    assert before.keys() == before2.keys()
    for name in before:
        found, gradient = (before[name] - after[name]) / lr, (before2[name] - after2[name]) / lr
        # atol: a weight near 1 changes in steps of 2^-24 or 2^-23, which the learning rate divides
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=2**-22 / lr, msg=name)


def assert_same_statistics(run: Path, wanted: Path, step: int) -> None:
    """The running statistics of batch norms within 1e-4."""
    found, wanted_buffers = stored(run, step, "buffer"), stored(wanted, step, "buffer")
    assert any(name.endswith("running_var") for name in wanted_buffers)
    for name, tensor in wanted_buffers.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
