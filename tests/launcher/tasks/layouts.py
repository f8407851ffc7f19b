"""Runs of a task on several layouts, compared: what tests of segmentation and of detection share."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from parallel.checkpoint.reader import CheckpointReader

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
    assert any(name.endswith("bn.running_var") for name in wanted_buffers)
    for name, tensor in wanted_buffers.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
