"""Small scenes in COCO's format, batches of them as an evaluation has them, and detections made by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as rle

from data_shards.stream.batch import Batch, BatchPlan, UnfinishedBatch
from data_shards.stream.collate import BufferPool, Collator, Fixed, Ragged
from launcher.tasks.detection.detections import ImageDetections
from launcher.tasks.detection.metric import DetectionMetric

CATEGORIES = (3, 7, 8, 20)  # ids with gaps; the last class never occurs
COLLATORS: Mapping[str, Collator] = {
    "annotations": Ragged(np.uint8),
    "image_id": Fixed((), np.int64),
    "source_size": Fixed((2,), np.int32),
}


@dataclass(frozen=True)
class Given:
    """Detections of the images of a batch, as a model gives them."""

    found: Sequence[ImageDetections]
    moe: dict[str, Any] = field(default_factory=dict)
    broken: bool = False

    @property
    def finite(self) -> list[bool]:
        return [not self.broken] * len(self.found)

    def of_image(self, row: int, size: tuple[int, int]) -> ImageDetections:
        assert self.found[row].size == size
        return self.found[row]


def scene(number: int) -> dict[str, Any]:
    """An image with rectangles, triangles and noise as objects, one image in five without any; one crowd.

    Image ids fall while positions rise.
    """
    draw = np.random.default_rng(number)
    height, width = (int(side) for side in draw.integers(150, 220, 2))
    objects = []
    for i in range(0 if number % 5 == 4 else int(draw.integers(1, 8))):
        w, h = draw.uniform(6, 140, 2)
        x, y = draw.uniform(0, width - w), draw.uniform(0, height - h)
        corners = [x, y, x + w, y, x + w, y + h, *([x, y + h] if i % 2 else [])]
        segmentation: Any = [[round(float(one), 2) for one in corners]]
        is_crowd = i == 4
        if i in (3, 4):
            bitmap = np.zeros((height, width), np.uint8, order="F")
            bitmap[int(y) : int(y + h), int(x) : int(x + w)] = draw.random((int(y + h) - int(y), 1)) < 0.8
            segmentation = rle.encode(bitmap)
            segmentation["counts"] = segmentation["counts"].decode()
        objects.append(
            {
                "id": 100 * number + len(objects) + 1,
                "label": int(draw.integers(3)),
                "box": [round(float(one), 2) for one in (x, y, x + w, y + h)],
                "area": float(rle.area(compressed(segmentation, height, width))),
                "iscrowd": int(is_crowd),
                "segmentation": segmentation,
            }
        )
    ids = {"image_id": 1000 - 7 * number, "height": height, "width": width}
    return {**ids, "objects": objects}


def compressed(segmentation: Any, height: int, width: int) -> Any:
    """A segmentation as COCO's compressed RLE."""
    if isinstance(segmentation, dict):
        return segmentation
    return rle.merge(rle.frPyObjects(segmentation, height, width))


def coco_json(scenes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scenes as a COCO file has them."""
    annotations = []
    for one in scenes:
        for thing in one["objects"]:
            known = {name: thing[name] for name in ("area", "iscrowd", "segmentation")}
            x1, y1, x2, y2 = thing["box"]
            known["bbox"], category = [x1, y1, x2 - x1, y2 - y1], CATEGORIES[thing["label"]]
            annotations.append(
                {**known, "id": len(annotations) + 1, "image_id": one["image_id"], "category_id": category}
            )
    images = [{"id": one["image_id"], "height": one["height"], "width": one["width"]} for one in scenes]
    categories = [{"id": category, "name": str(category)} for category in CATEGORIES]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def truth_as_found(one: Mapping[str, Any]) -> ImageDetections:
    """What a perfect model finds: each object that is no crowd, with a score of its own."""
    things = [thing for thing in one["objects"] if not thing["iscrowd"]]
    size = one["height"], one["width"]
    boxes = np.array([thing["box"] for thing in things], np.float32).reshape(-1, 4)
    masks = [compressed(thing["segmentation"], *size)["counts"] for thing in things]
    counts = [one if isinstance(one, bytes) else one.encode() for one in masks]
    scores = np.linspace(0.9, 0.5, len(things)).astype(np.float32)
    labels = np.array([thing["label"] for thing in things], np.int64)
    return ImageDetections(boxes, scores, labels, size, counts)


def noisy(one: Mapping[str, Any], seed: int) -> ImageDetections:
    """Moved boxes and masks, some wrong classes, some doubled, scores of two digits with many ties."""
    right = truth_as_found(one)
    draw = np.random.default_rng((seed, one["image_id"]))
    rows = np.repeat(np.arange(len(right.scores)), draw.integers(0, 4, len(right.scores)))
    if not len(rows):
        return ImageDetections(right.boxes[:0], right.scores[:0], right.labels[:0], right.size, [])
    shift = draw.integers(-2, 3, (len(rows), 2))
    boxes = right.boxes[rows] + np.tile(shift, 2).astype(np.float32)
    bitmaps = right.bitmaps()[rows]
    moved = [np.roll(bitmap, tuple(by[::-1]), (0, 1)) for bitmap, by in zip(bitmaps, shift, strict=True)]
    counts = [rle.encode(np.asfortranarray(bitmap))["counts"] for bitmap in moved]
    labels = np.where(draw.random(len(rows)) < 0.9, right.labels[rows], draw.integers(0, 4, len(rows)))
    order = np.argsort(-(scores := draw.integers(10, 20, len(rows)) / 20), kind="stable")
    return ImageDetections(
        boxes[order],
        scores[order].astype(np.float32),
        labels[order],
        right.size,
        [counts[i] for i in order],
    )


def batch_of(scenes: Sequence[Mapping[str, Any] | None], positions: Sequence[int]) -> Batch:
    """The scenes as an evaluation collates them; None is padding."""
    numbers = np.array(positions, np.int64)
    plan = BatchPlan(positions=numbers, shards=numbers, rows=numbers)
    batch = UnfinishedBatch(plan, COLLATORS, {name: BufferPool(1, pinned=False) for name in COLLATORS})
    for row, one in enumerate(scenes):
        if one is None:
            batch.put(row, None)
            continue
        text = np.frombuffer(json.dumps(one).encode(), np.uint8)
        size = np.array([one["height"], one["width"]], np.int32)
        batch.put(row, {"annotations": text, "image_id": one["image_id"], "source_size": size})
    return batch.finished()


def evaluated(
    scenes: Sequence[Mapping[str, Any]], found: Sequence[ImageDetections], **options: Any
) -> dict[str, Any]:
    """The values of one rank and batches of one."""
    metric = DetectionMetric(len(CATEGORIES), **options)
    for position, (one, detections) in enumerate(zip(scenes, found, strict=True)):
        metric.update(Given([detections]), batch_of([one], [position]))
    metric.reduce()
    return metric.compute()
