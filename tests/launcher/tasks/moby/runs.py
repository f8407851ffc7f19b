"""Small runs of MoBY on synthetic images, with experts."""

from pathlib import Path

from tests.launcher.running import overrides
from tests.launcher.tasks.layouts import plain_sgd, task_line

STEPS, BATCH = 4, 16
LR = 0.1
MOBY = (
    "task=moby",
    "data.augment=null",
    "model.moe.num_experts=4",
    "model.moe.routing_group_images=2",
    "moby.head={hidden_dim: 24, out_dim: 8, norm_group_images: 4}",
    "moby.queue=48",
    "moby.momentum=0.7",
    *plain_sgd(LR * 8 / BATCH, STEPS),  # which is for 8 images a step
    f"train.global_batch_size={BATCH}",
)


def options(shards: Path, run: Path, *more: str) -> list[str]:
    """The overrides of a run."""
    return overrides(shards, run, *MOBY, *more)


def line(shards: Path, run: Path, *more: str) -> list[str]:
    """The command line of a run."""
    return task_line(options(shards, run, *more))
