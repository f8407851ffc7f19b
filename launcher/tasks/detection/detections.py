"""What was found on an image, at its own size, on the host, and the objects that are there.

Legend: n detections of an image of H x W pixels, B images of a batch, h x w pixels of its canvas.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from data_shards.codecs.objects import ImageObjects
from data_shards.codecs.registry import CODECS
from data_shards.image.rle import format_counts
from data_shards.stream.batch import Batch
from launcher.config.schema import DataConfig
from swin_moe.moe.layer import MoEStats

AT_ONCE = 2**26  # pixels of masks that are encoded at once


class ImageDetections(NamedTuple):
    """The detections of an image, best first."""

    boxes: NDArray[np.float32]  # (n, 4) x1, y1, x2, y2 in pixels
    scores: NDArray[np.float32]  # (n,)
    labels: NDArray[np.int64]  # (n,)
    size: tuple[int, int]  # H and W
    masks: list[bytes] | None = None  # of each, the counts of COCO's compressed RLE; None: boxes alone

    def above(self, score: float) -> "ImageDetections":
        """Those with a higher score, or with this one."""
        keep = (self.scores >= score).nonzero()[0]
        masks = None if self.masks is None else [self.masks[i] for i in keep]
        return ImageDetections(self.boxes[keep], self.scores[keep], self.labels[keep], self.size, masks)

    def annotations(self) -> Iterator[dict[str, Any]]:
        """Each as in COCO's results, JSON-able: label, bbox (x, y, width, height), score, segmentation."""
        for i, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            x1, y1, x2, y2 = box.astype(np.float64).tolist()
            one = {"label": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
            if self.masks is not None:
                one["segmentation"] = {"size": list(self.size), "counts": self.masks[i].decode()}
            yield one

    def bitmaps(self) -> NDArray[np.uint8]:
        """The masks as 0 and 1: (n, H, W); without any, zeros."""
        if not self.masks:
            return np.zeros((len(self.boxes), *self.size), np.uint8)
        size = list(self.size)
        decoded = rle.decode([{"size": size, "counts": counts} for counts in self.masks])
        return np.ascontiguousarray(decoded.transpose(2, 0, 1))


class DetectionPrediction(Protocol):
    """What a model says of a batch, whatever form its masks have."""

    @property
    def moe(self) -> dict[str, MoEStats]:
        """The statistics of MoE layers, by image."""

    @property
    def finite(self) -> Sequence[bool]:
        """Whether all that the model computed of each image is finite."""

    def of_image(self, row: int, size: tuple[int, int]) -> ImageDetections:
        """The detections of an image of the batch, whose own height and width are `size`."""


class EvalInputs(NamedTuple):
    """Normalized images on their canvas, and the batch that they are of."""

    images: Tensor  # (B, 3, h, w) float32
    sizes: Tensor  # (B, 2) int64: height and width without padding
    scales: Tensor  # (B, 2) float32: these over height and width of the image at its own size
    batch: Batch  # on the host

    def shown(self, data: DataConfig) -> Tensor:
        """The first image without padding, before it was normalized: (3, height, width) in 0 to 1."""
        height, width = self.sizes[0].tolist()
        image = self.images[0, :, :height, :width].float().cpu()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
        return (image * std + mean).clamp(0, 1)


def truth_of(batch: Batch, row: int) -> ImageObjects:
    """The objects of an image of a batch of an evaluation: its member `annotations`."""
    start, end = batch["annotations_offsets"][row : row + 2].tolist()
    record: ImageObjects = CODECS["objects"].decode(batch["annotations"][start:end].numpy().tobytes())
    return record


def truth_annotations(truth: ImageObjects) -> Iterator[dict[str, Any]]:
    """Each object as in COCO's files: label, bbox (x, y, width, height), area, iscrowd, segmentation."""
    for one in truth.objects:
        yield {
            "label": one.label,
            "bbox": one.bbox,
            "area": one.area,
            "iscrowd": one.iscrowd,
            "segmentation": one.segmentation,
        }


def as_found(truth: ImageObjects) -> ImageDetections:
    """The objects as if a model had found them, crowds too; of score 1."""
    objects, masks = truth.objects, None
    if all(one.segmentation is not None for one in objects):
        masks = [format_counts(truth.counts(one)).encode() for one in objects]
    return ImageDetections(
        boxes=np.array([one.box for one in objects], np.float32).reshape(-1, 4),
        scores=np.ones(len(objects), np.float32),
        labels=np.array([one.label for one in objects], np.int64),
        size=(truth.height, truth.width),
        masks=masks,
    )


def size_of(batch: Batch, row: int) -> tuple[int, int]:
    """The height and width of an image of a batch, as it is in the split."""
    height, width = batch["source_size"][row].tolist()
    return height, width


def encode_masks(masks: Tensor) -> list[bytes]:
    """Masks (n, H, W) bool, on any device, as the counts of COCO's compressed RLE, n of them."""
    count = max(1, AT_ONCE // max(1, masks.shape[1] * masks.shape[2]))
    return [counts for part in masks.split(count) for counts in _encoded(part)]


def _encoded(masks: Tensor) -> list[bytes]:
    by_column = masks.to("cpu").permute(0, 2, 1).contiguous().numpy().view(np.uint8)  # COCO's order of pixels
    return [one["counts"] for one in rle.encode(by_column.transpose(2, 1, 0))] if len(masks) else []
