"""A data set before it is packed: splits, each a list of samples that can be read in any order."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field


class BadSourceError(DataError):
    """A sample that is permanently damaged or missing: it is listed and left out, and the rest is packed."""


class BadSource(NamedTuple):
    """A sample that was left out: the key it would have, its path in the source, label or -1, the reason."""

    key: str
    source: str
    label: int
    reason: str


class Samples(Protocol):
    """A list of samples, each a mapping from the names of its members to their values.

    A value is what the codec of the member encodes, or the bytes of a finished file. An image is an (H, W) or
    (H, W, 3) uint8 array, or the bytes of an image file; a label is a number.
    Reading raises BadSourceError when a sample is permanently damaged or missing, and DataError for a
    transient error (I/O): then packing stops, because a shard must not depend on it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...

    def select(self, rows: np.ndarray) -> "Samples":
        """The samples at `rows`, small enough to be sent to another process."""
        ...

    def describe(self, i: int) -> str:
        """The path of sample i inside the source, for messages."""
        ...

    def label(self, i: int) -> int:
        """The label of sample i, without reading it; -1 where it has none."""
        ...

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of each sample in the source, by `stat` or a directory; 0: it is missing."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that the source knows of these samples without reading them."""
        ...


@dataclass(frozen=True)
class Source:
    """A data set before packing; `description` is the same on every machine, as a digest covers it.

    `notes` are printed when it is packed: what the source contains that is not among its samples. `fields`
    are the members of every sample, `category_ids` the ids of the classes in the source, if it has some.
    """

    name: str
    description: str
    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    notes: tuple[str, ...] = ()
    fields: tuple[Field, ...] = IMAGE_AND_LABEL
    category_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ArraySamples:
    """Samples held in memory: images (N, H, W) or (N, H, W, 3) uint8, labels (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        return {"image": self.images[i], "label": int(self.labels[i])}

    def select(self, rows: np.ndarray) -> "ArraySamples":
        """The samples at `rows`, copied."""
        return ArraySamples(self.images[rows], self.labels[rows])

    def describe(self, i: int) -> str:
        """The index in the array."""
        return f"image {i}"

    def label(self, i: int) -> int:
        """The label of image i."""
        return int(self.labels[i])

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the pixels."""
        return np.full(len(self), self.images[:1].nbytes, dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of shape, pixels and labels."""
        sha = hashlib.sha256(repr(self.images.shape).encode())
        sha.update(np.ascontiguousarray(self.images).data)
        sha.update(self.labels.astype("<i8").tobytes())
        return sha.hexdigest()
