"""The samples of the toy task: two views of an image, points of which each has its own number, a label.

Legend: B samples, N points of all samples together, V views of a sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.codecs.registry import CODECS
from data_shards.format.fields import Field, Members
from data_shards.format.rng import DrawKey
from data_shards.format.samples import Source
from data_shards.image.decode import decode_views, stack_views
from data_shards.image.geometry import ImageTransform
from data_shards.pack.sources.registry import SyntheticSamples
from data_shards.pack.write import pack
from data_shards.stream.batch import Batch
from data_shards.stream.collate import Collator, Fixed, Ragged, image_tensor
from data_shards.stream.transform import Example, file_of, number_of
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import central_crop, random_crop
from launcher.tasks.spec import DataSpec
from tests.toy_task.options import ToyOptions

FIELDS = (Field("image", "image"), Field("points", "array"), Field("label", "int"))
CLASSES = tuple(f"grating-{label}" for label in range(10))


class ToySamples(SyntheticSamples):
    """Synthetic images, each with the points of its label."""

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        sample = super().__getitem__(i)
        return {**sample, "points": points_of(sample["label"])}

    def select(self, rows: np.ndarray) -> "ToySamples":
        return ToySamples(self.rows[rows], self.num_classes, self.image_size, self.key)


def points_of(label: int) -> np.ndarray:
    """The points of a sample, none to three: (label % 4, 2) float32."""
    places = np.arange(1, 1 + label % 4)
    return np.stack([np.full(len(places), label / 10), places / (label + 2)], axis=1).astype(np.float32)


def pack_toy(out: Path, train: int, val: int) -> Path:
    """Pack so many samples to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    splits = {
        split: ToySamples(np.arange(count), len(CLASSES), 32, key)
        for key, (split, count) in enumerate({"train": train, "val": val}.items())
    }
    source = Source("toy", "gratings with points", CLASSES, splits, fields=FIELDS)
    for split in splits:
        pack(source, split, out / split, samples_per_shard=64)
    return out


@dataclass(frozen=True)
class ToyTransform:
    """A view for each geometry, which are of one size; the points and the label."""

    geometries: tuple[ImageTransform, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return ("image", "points", "label")

    @property
    def collators(self) -> Mapping[str, Collator]:
        return {
            "views": image_tensor(self.geometries[0].sides, len(self.geometries)),
            "points": Ragged(np.float32, (2,)),
            "label": Fixed((), np.int64),
        }

    def __call__(self, members: Members, key: DrawKey) -> Example:
        keys = [key._replace(view=view) for view in range(len(self.geometries))]
        return {
            "views": stack_views(decode_views(file_of(members, "image"), self.geometries, keys)),
            "points": CODECS["array"].decode(file_of(members, "points")),
            "label": number_of(members, "label"),
        }


@dataclass(frozen=True)
class ToyViews:
    """The views of `ToyTransform`, of an image alone."""

    geometries: tuple[ImageTransform, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def collators(self) -> Mapping[str, Collator]:
        return {"views": image_tensor(self.geometries[0].sides, len(self.geometries))}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        keys = [key._replace(view=view) for view in range(len(self.geometries))]
        return {"views": stack_views(decode_views(file_of(members, "image"), self.geometries, keys))}


def image_data(config: RunConfig) -> DataSpec:
    """The central crop of an image without points and label."""
    return DataSpec(transform=ToyViews((central_crop(config),)))


def train_data(config: RunConfig) -> DataSpec:
    """Two random crops."""
    return DataSpec(transform=ToyTransform((random_crop(config),) * 2), members=FIELDS)


def eval_data(config: RunConfig) -> DataSpec:
    """The central crop, and random ones where more views are configured."""
    further = options_of(config, ToyOptions).eval_views - 1
    return DataSpec(transform=ToyTransform((central_crop(config), *(random_crop(config),) * further)))


def sample_of_points(batch: Batch) -> Tensor:
    """The sample of each point, on the host: (N,) int64."""
    offsets = batch["points_offsets"]
    return torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
