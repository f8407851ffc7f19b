"""Tiny images with objects, of different sizes, and runs on them."""

from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.fields import IMAGE_AND_OBJECTS
from tests.data_shards.made_samples import pack_made
from tests.launcher.tasks.layouts import task_line, task_options

CLASSES = ("square", "disc", "bar")
CATEGORY_IDS = (2, 5, 9)
COLOURS = ((220, 60, 40), (60, 220, 80), (40, 80, 230))
TASK = (
    "task=detection",
    "detection.head.channels=16",
    "detection.head.head_channels=32",
    "detection.head.mask_channels=16",
    "detection.head.anchor_scale=3.0",
    "detection.head.rpn_samples=32",
    "detection.head.pre_nms_train=64",
    "detection.head.pre_nms_test=64",
    "detection.head.train_proposals=32",
    "detection.head.test_proposals=32",
    "detection.head.roi_samples=16",
    "detection.head.detections=10",
    "detection.short_sides=[40, 48]",
    "detection.long_side=64",
    "detection.eval_short_side=48",
    "detection.canvases=[[64, 64]]",
    "data.crop_scale=[0.08, 1.0]",
    "data.eval_crop=0.875",
    "model.num_classes=3",
    "model.image_size=64",
    "model.window_size=4",
    "model.drop_path_rate=0.2",
    "model.moe.num_experts=4",
    "model.moe.routing_group_images=1",
    "optim.warmup_ratio=1e-3",
    "optim.warmup=2 steps",
    "optim.decay_rule=dense",
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "train.eval_batch_size=4",
)


def sample(number: int) -> dict[str, Any]:
    """Up to three shapes in the colour of their class on a noisy ground; every fifth image has none."""
    draw = np.random.default_rng(number)
    height, width = (int(side) for side in draw.integers(40, 64, 2))
    image = np.full((height, width, 3), 60, dtype=np.int64)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    objects = []
    for item in range(0 if number % 5 == 4 else int(draw.integers(1, 4))):
        label, tall = int(draw.integers(3)), int(draw.integers(10, 26))
        wide = tall // 3 if label == 2 else tall
        top, left = (int(draw.integers(0, side - length)) for side, length in ((height, tall), (width, wide)))
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        if label == 1:
            middle = top + (tall - 1) / 2, left + (wide - 1) / 2
            inside &= (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= tall**2 / 4
        image[inside] = COLOURS[label]
        objects.append(_object(100 * number + item, label, inside))
    image += draw.integers(-25, 26, image.shape)
    record = {"image_id": number, "file_name": "", "height": height, "width": width, "objects": objects}
    return {"image": image.clip(0, 255).astype(np.uint8), "annotations": record}


def _object(identity: int, label: int, inside: np.ndarray) -> dict[str, Any]:
    """An object with the pixels (H, W) bool."""
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    pixels = np.concatenate([[False], inside.T.ravel(), [not inside[-1, -1]]])
    ends = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return {
        "id": identity,
        "label": label,
        "box": [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)],
        "area": float(inside.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(inside.shape), "counts": counts},
    }


def sample_without_objects(number: int) -> dict[str, Any]:
    """The image of a sample, and a record of no objects."""
    found = sample(number)
    return {**found, "annotations": {**found["annotations"], "objects": []}}


def pack_objects(
    out: Path, train: int, val: int, *, objects: bool = True, classes: tuple[str, ...] = CLASSES
) -> Path:
    """Pack so many samples to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    make = sample if objects else sample_without_objects
    ids = (*CATEGORY_IDS, 12)[: len(classes)]
    return pack_made(make, out, train, val, classes=classes, fields=IMAGE_AND_OBJECTS, category_ids=ids)


def options(shards: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The overrides of a tiny run."""
    return task_options(TASK, shards, run_dir, *more)


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """The command of a tiny run."""
    return task_line(options(shards, run_dir, *more))
