"""Tiny videos of a square that moves, and runs on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.fields import VIDEO_AND_LABEL
from data_shards.format.samples import Source
from data_shards.pack.write import pack
from data_shards.video.facts import read_facts
from tests.data_shards.videos import times_of, write_video
from tests.launcher.running import CONFIG

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


@dataclass(frozen=True)
class Squares:
    """The videos of the numbers `rows`; the methods are those of `Samples`."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        body = video(int(self.rows[i]))
        return {"video": body, "label": self.label(i), **read_facts(body).members()}

    def select(self, rows: np.ndarray) -> "Squares":
        return Squares(self.rows[rows])

    def describe(self, i: int) -> str:
        return f"video {self.rows[i]}"

    def label(self, i: int) -> int:
        return int(self.rows[i]) % 4

    def sizes(self) -> np.ndarray:
        return np.full(len(self), 2000, dtype=np.int64)

    @property
    def digest(self) -> str:
        return f"squares {self.rows.tolist()}"


def pack_videos(out: Path, train: int, val: int) -> Path:
    """Pack so many videos to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    splits = {"train": Squares(np.arange(train)), "val": Squares(np.arange(10_000, 10_000 + val))}
    source = Source("squares", "squares that move", CLASSES, splits, fields=VIDEO_AND_LABEL)
    for split in splits:
        pack(source, split, out / split, samples_per_shard=16)
    return out


def options(shards: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The overrides of a tiny run."""
    places = (f"data.train={shards}/train", f"data.val={shards}/val", f"run_dir={run_dir}")
    return [*TASK, *places, *more]


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The command of a tiny run."""
    return ["train", str(CONFIG), "--resume", "auto", *options(shards, run_dir, *more)]
