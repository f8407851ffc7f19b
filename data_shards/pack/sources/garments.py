"""Garments of Fashion-MNIST as objects of a picture: enlarged, painted on a textured background.

Everything is made of integers and of keyed draws, so that any worker makes the same pixels.

Legend: H, W height and width of the picture; h, w of an enlarged garment; all in pixels.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.rng import hashes
from data_shards.image.geometry import Crop
from data_shards.pack.sources.fashion_mnist import read_splits

SOLID = 16  # of 255: from this value on a pixel belongs to the garment; from 1 on to its rim
AMBIENT = 32  # of the light on a garment: the darkest of its pixels are not black
DRAWS_OF_TEXTURE = 12


class Garment(NamedTuple):
    """An enlarged garment: its gray values (h, w) uint8, and which pixels are its silhouette and its rim."""

    gray: np.ndarray
    inside: np.ndarray
    rim: np.ndarray


class Item(NamedTuple):
    """A garment in a picture: its number in the split, the place that it fills, and its colour (3,)."""

    number: int
    place: Crop
    tint: np.ndarray


class Painted(NamedTuple):
    """What a garment covers: rows and columns of the picture, and there its silhouette and its rim."""

    where: tuple[slice, slice]
    inside: np.ndarray
    rim: np.ndarray


@dataclass(frozen=True)
class Garments:
    """The garments of a split of Fashion-MNIST, or those of them that some pictures need.

    `labels` (total,) uint8 are the classes of all. `images` (G, 28, 28) uint8 are those with the `numbers`
    (G,), in ascending order. `digest` is of all.
    """

    labels: np.ndarray
    numbers: np.ndarray
    images: np.ndarray
    digest: str

    @classmethod
    def of_split(cls, images: np.ndarray, labels: np.ndarray) -> "Garments":
        """All of a split."""
        digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        return cls(labels, np.arange(len(images)), images, digest)

    @property
    def total(self) -> int:
        """How many the split has."""
        return len(self.labels)

    def image(self, number: int) -> np.ndarray:
        """A garment: (28, 28) uint8."""
        garment: np.ndarray = self.images[np.searchsorted(self.numbers, number)]
        return garment

    def label(self, number: int) -> int:
        """Its class."""
        return int(self.labels[number])

    def only(self, numbers: Iterable[int]) -> "Garments":
        """Those with these numbers."""
        needed = np.array(sorted(set(numbers)), dtype=np.int64)
        return replace(self, numbers=needed, images=self.images[np.searchsorted(self.numbers, needed)])


class GarmentSplit(NamedTuple):
    """A split of pictures to be made, of the garments of one split of Fashion-MNIST."""

    name: str  # train or val
    stream: int  # number of its draws
    rows: np.ndarray  # (N,) numbers of the pictures
    garments: Garments


def garment_splits(
    directory: str | Path | None, num_train: int, num_val: int, kind: str
) -> Iterator[GarmentSplit]:
    """The splits of so many pictures; `directory` as that of `fashion_mnist`, and so its errors.

    DataError for a split without pictures, with the name of its option: --KIND-train or --KIND-val.
    """
    counts = {"train": num_train, "val": num_val}
    for name, count in counts.items():
        if count < 1:
            raise DataError(f"--{kind}-{name} ({count}) must be at least 1")
    found = read_splits(directory)
    for stream, (name, count) in enumerate(counts.items()):
        yield GarmentSplit(name, stream, np.arange(count), Garments.of_split(*found[name]))


def within(draw: int, limits: tuple[int, int]) -> int:
    """A whole number of the range `limits`, both ends included."""
    return limits[0] + draw % (limits[1] - limits[0] + 1)


def enlarge(image: np.ndarray, height: int, width: int | None = None) -> Garment:
    """The garment of an image (28, 28) uint8 at a size of `height` and `width` pixels, by default a square.

    Its silhouette are the pixels of at least `SOLID`, and the holes that they enclose. Its rim are the other
    pixels above 0, where it is not clear what the pixel shows.
    """
    size = width or height, height
    gray = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    inside = ~reached(gray < SOLID)
    return Garment(gray, inside, (gray > 0) & ~inside)


def reached(free: np.ndarray) -> np.ndarray:
    """Which pixels of `free` (H, W) bool can be reached from beyond the border, by steps to four sides.

    What is reached grows along complete runs of free pixels, of rows and of columns in turn. A run may go on
    from the end of a row in the next one, as both ends are beyond the border.
    """
    free = np.pad(free, 1, constant_values=True)
    found = np.pad(np.zeros(np.subtract(free.shape, 2), dtype=bool), 1, constant_values=True)
    row_runs, column_runs = (np.cumsum(~pixels) for pixels in (free, free.T))
    while True:
        grown = _grown(_grown(found, free, row_runs).T, free.T, column_runs).T
        if np.array_equal(grown, found):
            return found[1:-1, 1:-1]
        found = grown


def _grown(found: np.ndarray, free: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """All pixels of `free` (H, W) whose run, by its number in `runs` (H x W,), has a pixel of `found`."""
    hit = np.zeros(runs[-1] + 1, dtype=bool)
    hit[runs[found.ravel()]] = True
    return hit[runs].reshape(free.shape) & free


def texture(key: int, height: int, width: int, noise: int = 64) -> np.ndarray:
    """A background (H, W, 3) uint8: stripes of two colours in any direction, with `noise` levels of grain."""
    draws = hashes(key, DRAWS_OF_TEXTURE + 1 + height * width).astype(np.int64) & 0xFFFF
    turn_y, turn_x = (within(int(draw), (-24, 24)) for draw in draws[:2])  # of 256, a pixel
    y, x = np.mgrid[0:height, 0:width]
    wave = np.abs((turn_y * y + turn_x * x + draws[2]) % 256 - 128)[:, :, None]  # (H, W, 1), 0 ... 128
    one, other = (32 + draws[start : start + 3] % 160 for start in (3, 6))
    grain = draws[DRAWS_OF_TEXTURE : DRAWS_OF_TEXTURE + height * width].reshape(height, width, 1) % noise
    return ((one * wave + other * (128 - wave)) // 128 + grain).astype(np.uint8)  # at most 191 + 63


def paint(image: np.ndarray, item: Item, garment: Garment) -> Painted:
    """Draw a garment of the item's size on image (H, W, 3), in place; what lies beyond the border is cut off.

    A pixel of the rim is mixed with what is below it, by its value.
    """
    (top, left, h, w), (height, width) = item.place, image.shape[:2]
    rows, columns = slice(max(0, top), min(height, top + h)), slice(max(0, left), min(width, left + w))
    cut = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    gray, inside, rim = (part[cut] for part in garment)
    gray = gray.astype(np.int64)[:, :, None]
    colour = item.tint * (gray + AMBIENT) // (255 + AMBIENT)
    below = image[rows, columns]
    mixed = (colour * gray + below * (16 - gray)) // 16  # of the rim, where gray is 1 ... 15
    image[rows, columns] = np.where(inside[:, :, None], colour, np.where(rim[:, :, None], mixed, below))
    return Painted((rows, columns), inside, rim)
