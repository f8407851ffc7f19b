"""The classes of the pixels of single images, for `swin-moe predict` and `swin-moe serve`.

Legend: B images; H, W height and width of an image at its own size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from data_shards.format.fields import IMAGE_AND_MASK, Members
from data_shards.format.rng import DrawKey
from data_shards.image.pixels import image_size
from data_shards.stream.batch import Batch
from data_shards.stream.collate import Collator
from data_shards.stream.pixel_labels import PixelLabelImages
from data_shards.stream.transform import Example, file_of
from launcher.config.schema import RunConfig
from launcher.tasks.answers import NOT_FINITE, Answer, AnswerOptions
from launcher.tasks.class_scores import class_shares
from launcher.tasks.segmentation.data import eval_images
from launcher.tasks.segmentation.pictures import palette
from launcher.tasks.segmentation.prediction import SegmentationPrediction
from launcher.tasks.spec import DataSpec, Task
from swin_moe.heads.upernet_config import IGNORED


@dataclass(frozen=True)
class UnlabelledImages:
    """What `PixelLabelImages` makes of an image whose pixels have no class."""

    images: PixelLabelImages

    @property
    def fields(self) -> tuple[str, ...]:
        """The image."""
        return ("image",)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """Those of an evaluation."""
        return self.images.collators

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The image at each ratio, and a label image of its size."""
        body = file_of(members, "image")
        void = np.full(image_size(body), IGNORED, dtype=np.uint8)
        return {**self.images.resized(body), "mask": void}


def data(config: RunConfig) -> DataSpec:
    """Images as in evaluation, without labels."""
    return DataSpec(transform=UnlabelledImages(eval_images(config)), members=IMAGE_AND_MASK[:1])


def columns(options: AnswerOptions) -> list[str]:
    """Height and width; index, name and share of each class, numbered from 1."""
    parts = ("index", "name", "share")
    return ["height", "width", *(f"{part}{i}" for i in range(1, options.top + 1) for part in parts)]


def answers(
    prediction: SegmentationPrediction, batch: Batch, options: AnswerOptions
) -> Sequence[Answer | str]:
    """The classes with most pixels of each image."""
    return [
        _answer(labels, options) if finite else NOT_FINITE
        for labels, finite in zip(prediction.labels, prediction.finite.tolist(), strict=True)
    ]


def _answer(labels: Tensor, options: AnswerOptions) -> Answer:
    height, width = labels.shape
    found = [asdict(one) for one in class_shares(labels, options.classes)[: options.top]]
    row: list[Any] = [height, width]
    for one in found:
        row += [one["index"], one["name"] or "", one["share"]]
    row += [""] * (len(columns(options)) - len(row))
    shown = ", ".join(f"{one['name'] or one['index']} {one['share']:.1%}" for one in found)
    return Answer(
        text=f"{height} x {width} pixels: {shown}",
        record={"height": height, "width": width, "classes": found},
        row=row,
    )


def class_maps(prediction: SegmentationPrediction) -> Tensor:
    """The index of the class of each pixel: (B, H, W) uint8."""
    return prediction.labels


def pictures(
    task: Task, model: nn.Module, inputs: Any, prediction: SegmentationPrediction, options: AnswerOptions
) -> Mapping[str, Tensor]:
    """The index of the class of each pixel (H, W), and its colour (3, H, W)."""
    labels = prediction.labels[0].cpu()
    return {"labels": labels, "colours": palette()[labels.long()].permute(2, 0, 1)}
