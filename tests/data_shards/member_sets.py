"""A data set of many members, made up: image, mask, boxes, points, label and count of every sample."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.format.fields import Field
from data_shards.format.samples import Source
from tests.data_shards.image_folders import jpeg

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


@dataclass(frozen=True)
class MemberSamples:
    """The samples `rows` (N,)."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        return sample(int(self.rows[i]))

    def select(self, rows: np.ndarray) -> "MemberSamples":
        return MemberSamples(self.rows[rows])

    def describe(self, i: int) -> str:
        return f"sample {self.rows[i]}"

    def label(self, i: int) -> int:
        return int(self.rows[i]) % 3

    def sizes(self) -> np.ndarray:
        return np.full(len(self), 3000, dtype=np.int64)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.rows.tobytes()).hexdigest()


def member_source(count: int = 22) -> Source:
    return Source("members", "made up", CLASSES, {"train": MemberSamples(np.arange(count))}, fields=FIELDS)
