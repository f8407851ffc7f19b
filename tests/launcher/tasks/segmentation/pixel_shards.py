"""Tiny images with a class for every pixel, of different sizes, and runs on them."""

from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.fields import IMAGE_AND_MASK
from tests.data_shards.made_samples import pack_made
from tests.launcher.tasks.layouts import task_line, task_options

CLASSES = ("ground", "wood", "stone", "water")
COLOURS = np.array([(40, 40, 40), (200, 60, 40), (60, 200, 80), (40, 80, 220)])
TASK = (
    "task=segmentation",
    "segmentation.head.channels=8",
    "segmentation.head.auxiliary_channels=8",
    "segmentation.head.auxiliary_stage=1",
    "segmentation.head.norm_group_images=4",
    "segmentation.head.pool_bins=[1, 2]",
    "segmentation.long_side=64",
    "segmentation.short_side=32",
    "segmentation.ratio_range=[0.75, 1.5]",
    "segmentation.eval_fit=false",
    "data.crop_scale=[0.08, 1.0]",
    "data.eval_crop=0.875",
    "model.num_classes=4",
    "model.image_size=32",
    "model.window_size=4",
    "model.drop_path_rate=0.2",
    "model.moe.num_experts=4",
    "model.moe.routing_group_images=1",
    "optim.schedule=poly",
    "optim.warmup_ratio=1e-6",
    "optim.warmup=2 steps",
    "optim.decay_rule=dense",
    "train.global_batch_size=16",
    "train.micro_batch_size=4",
    "train.eval_batch_size=1",
)


def sample(number: int) -> dict[str, Any]:
    """Rectangles of classes in noisy colours on the ground, some pixels without a class."""
    draw = np.random.default_rng(number)
    height, width = draw.integers(26, 46, 2)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(4):
        top, left = draw.integers(0, height - 12), draw.integers(0, width - 12)
        mask[top : top + draw.integers(6, 20), left : left + draw.integers(6, 20)] = draw.integers(1, 4)
    image = COLOURS[mask] + draw.integers(-30, 31, (height, width, 3))
    mask[:2, : number % 9] = 255
    return {"image": image.clip(0, 255).astype(np.uint8), "mask": mask}


def pack_pixels(out: Path, train: int, val: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Pack so many samples to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    return pack_made(sample, out, train, val, classes=classes, fields=IMAGE_AND_MASK)


def options(shards: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The overrides of a tiny run."""
    return task_options(TASK, shards, run_dir, *more)


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The command of a tiny run."""
    return task_line(options(shards, run_dir, *more))
