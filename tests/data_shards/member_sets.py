"""A data set of many members, made up: image, mask, boxes, points, label and count of every sample."""

from typing import Any

import numpy as np

from data_shards.format.fields import Field
from data_shards.format.samples import Source
from tests.data_shards.image_folders import jpeg
from tests.data_shards.made_samples import MadeSamples

FIELDS = (
    Field("image", "image"),
    Field("mask", "label_image"),
    Field("boxes", "json"),
    Field("points", "array"),
    Field("label", "int"),
    Field("count", "int"),
)
FILES = ("image", "mask", "boxes", "points")
CLASSES = ("a", "b", "c")


def sample(number: int) -> dict[str, Any]:
    """The values of sample `number`, which no other has."""
    rng = np.random.default_rng(number)
    return {
        "image": jpeg(number),
        "mask": rng.integers(0, 300 if number % 2 else 20, (24, 32)).astype(np.uint16),
        "boxes": {"boxes": rng.integers(0, 24, (number % 4, 4)).tolist(), "text": f"ä {number}"},
        "points": rng.standard_normal((number % 3, 2)).astype(np.float32),
        "label": number % 3,
        "count": -number if number % 2 else 2**40 + number,
    }


class MemberSamples(MadeSamples):
    """Those of `sample`, with labels."""

    def label(self, i: int) -> int:
        return int(self.rows[i]) % 3


def member_source(count: int = 22) -> Source:
    return Source(
        "members", "made up", CLASSES, {"train": MemberSamples(sample, np.arange(count), 3000)}, fields=FIELDS
    )
