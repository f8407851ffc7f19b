"""Tiny videos of a square that moves, and runs on them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.fields import VIDEO_AND_LABEL
from data_shards.video.facts import read_facts
from tests.data_shards.made_samples import MadeSamples, pack_made
from tests.data_shards.videos import times_of, write_video
from tests.launcher.tasks.layouts import task_line, task_options

CLASSES = ("right", "down", "left", "up")
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # rows and columns a frame
SIDES, SQUARE = (24, 32), 8  # pixels
TASK = (
    "task=video",
    "video.interval=1",
    "model.num_classes=4",
    "model.image_size=16",
    "model.frames=4",
    "model.patch_frames=2",
    "model.window_size=2",
    "model.window_frames=2",
    "model.window_padding=fitted",
    "model.drop_path_rate=0.2",
    "model.head_dropout=0.3",
    "model.moe.num_experts=4",
    "model.moe.routing_group_images=2",
    "data.crop_scale=[0.5, 1.0]",
    "data.augment={}",
    "optim.decay_rule=dense",
    "optim.backbone_lr_scale=0.5",
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "train.eval_batch_size=4",
)


@cache
def video(number: int) -> bytes:
    """The file of a video: 6 to 9 frames of a square whose direction is its class, `number` % 4."""
    draw = np.random.default_rng(number)
    place, (down, right) = draw.integers(0, SIDES), STEPS[number % 4]
    frames = np.empty((6 + number % 4, *SIDES, 3), np.uint8)
    colour = draw.integers(120, 255, 3)
    for time, frame in enumerate(frames):
        frame[:] = 40
        rows, columns = (
            (np.arange(SQUARE) + at + 2 * step * time) % side
            for at, step, side in zip(place, (down, right), SIDES, strict=True)
        )
        frame[np.ix_(rows, columns)] = colour
    return write_video(frames, times_of(len(frames), variable=False))


def sample(number: int) -> Mapping[str, Any]:
    """The members of a video."""
    body = video(number)
    return {"video": body, "label": number % 4, **read_facts(body).members()}


class Squares(MadeSamples):
    """Samples with the label of each."""

    def label(self, i: int) -> int:
        return int(self.rows[i]) % 4


def pack_videos(out: Path, train: int, val: int) -> Path:
    """Pack so many videos to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    return pack_made(sample, out, train, val, classes=CLASSES, fields=VIDEO_AND_LABEL, samples=Squares)


def options(shards: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The overrides of a tiny run."""
    return task_options(TASK, shards, run_dir, *more)


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The command of a tiny run."""
    return task_line(options(shards, run_dir, *more))
