"""Fashion canvas: garments of Fashion-MNIST on textured canvases of any size, with a class for every pixel.

A canvas has a texture of stripes and noise, and one to several garments, each of random size, place and tint.
They are drawn one after the other, so that a later one covers an earlier one, and the mask has the class of
the garment that is seen. The rim of a garment, where its pixels fade out, has no class (`VOID`). The tint
does not depend on the class, so that colours alone tell nothing.

Canvas i of a split is a function of the seed and of i: any worker makes the same pixels, in integers
throughout. Training canvases have garments of Fashion-MNIST's 60,000 training images, those for validation of
its 10,000 test images.

Legend: N canvases, G garments, H, W height and width of a canvas, in pixels.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_MASK
from data_shards.format.rng import Purpose, fold, hashes
from data_shards.format.samples import Samples, Source
from data_shards.image.annotations import VOID
from data_shards.image.geometry import Crop
from data_shards.pack.sources.fashion_mnist import FASHION_CLASSES
from data_shards.pack.sources.garments import Garments, Item, enlarge, garment_splits, paint, texture, within

VERSION = 1  # of the way in which a canvas is made
BACKGROUNDS = ("class", "void")
DRAWS_OF_ITEM = 7
PER_CANVAS = 100  # items at most, and so many times the draws of an item
MIN_SIDE = 16  # of a canvas, in pixels


@dataclass(frozen=True, kw_only=True)
class CanvasOptions:
    """How canvases are made; DataError for a value out of range.

    sides: the range of height and of width in pixels, which are drawn apart.
    items: the range of the number of garments.
    background: "class" is one more class after those of the garments, "void" has no class.
    """

    sides: tuple[int, int] = (64, 96)
    items: tuple[int, int] = (1, 5)
    background: str = "class"

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.sides[0] <= self.sides[1] <= 4096:
            raise DataError(f"--canvas-size {self.sides} must be {MIN_SIDE} <= low <= high <= 4096 pixels")
        if not 1 <= self.items[0] <= self.items[1] <= PER_CANVAS:
            raise DataError(f"--canvas-items {self.items} must be 1 <= low <= high <= {PER_CANVAS}")
        if self.background not in BACKGROUNDS:
            raise DataError(f"--canvas-background ({self.background!r}) must be {' or '.join(BACKGROUNDS)}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return (*FASHION_CLASSES, "background") if self.background == "class" else FASHION_CLASSES


@dataclass(frozen=True)
class CanvasSamples:
    """The canvases `rows` (N,) of a split."""

    rows: np.ndarray
    garments: Garments
    key: int
    options: CanvasOptions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        row = int(self.rows[i])
        size, items = self.layout(row)
        image = texture(fold(self.key, row, 1), *size)
        mask = np.full(size, VOID if self.options.background == "void" else len(FASHION_CLASSES), np.uint8)
        for item in items:
            garment = enlarge(self.garments.image(item.number), item.place.height)
            where, inside, rim = paint(image, item, garment)
            label = self.garments.label(item.number)
            mask[where] = np.where(inside, label, np.where(rim, VOID, mask[where]))
        return {"image": image, "mask": mask}

    def layout(self, row: int) -> tuple[tuple[int, int], list[Item]]:
        """Height and width of canvas `row`, and its items, each of which covers those before it."""
        draws = hashes(fold(self.key, row), 3 + DRAWS_OF_ITEM * self.options.items[1]).tolist()
        size = within(draws[0], self.options.sides), within(draws[1], self.options.sides)
        count = within(draws[2], self.options.items)
        parts = [draws[3 + DRAWS_OF_ITEM * i : 3 + DRAWS_OF_ITEM * (i + 1)] for i in range(count)]
        return size, [self._item(size, part) for part in parts]

    def _item(self, size: tuple[int, int], draws: list[int]) -> Item:
        """A garment of 3/8 to 3/4 of the short side, of which at least half a side is on the canvas."""
        short = min(size)
        side = within(draws[0], (short * 3 // 8, short * 3 // 4))
        top, left = (
            within(draw, (-side // 4, length - side * 3 // 4))
            for draw, length in zip(draws[1:3], size, strict=True)
        )
        tint = np.array([within(draw, (64, 255)) for draw in draws[3:6]])
        return Item(draws[6] % self.garments.total, Crop(top, left, side, side), tint)

    def select(self, rows: np.ndarray) -> "CanvasSamples":
        """The canvases at `rows`, with the garments that they need."""
        chosen = self.rows[rows]
        needed = (item.number for row in chosen.tolist() for item in self.layout(row)[1])
        return replace(self, rows=chosen, garments=self.garments.only(needed))

    def describe(self, i: int) -> str:
        """Its number in the split."""
        return f"canvas {int(self.rows[i])}"

    def label(self, i: int) -> int:
        """-1: a canvas has a class for each pixel."""
        return -1

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the pixels of image and mask."""
        return np.array([4 * np.prod(self.layout(int(row))[0]) for row in self.rows], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the garments and of the numbers that decide every pixel."""
        text = (
            f"fashion-canvas {VERSION} {self.rows.tolist()} {self.key} {self.options} {self.garments.digest}"
        )
        return hashlib.sha256(text.encode()).hexdigest()


def fashion_canvas(
    directory: str | Path | None = None,
    num_train: int = 4096,
    num_val: int = 512,
    options: CanvasOptions | None = None,
    seed: int = 0,
) -> Source:
    """Canvases of Fashion-MNIST's garments; `directory` as that of `fashion_mnist`, and so its errors."""
    options = options or CanvasOptions()
    splits: dict[str, Samples] = {
        one.name: CanvasSamples(
            rows=one.rows,
            garments=one.garments,
            key=fold(Purpose.CANVAS, seed, one.stream),
            options=options,
        )
        for one in garment_splits(directory, num_train, num_val, "canvas")
    }
    size, items = ("-".join(map(str, limits)) for limits in (options.sides, options.items))
    description = (
        f"garments of Fashion-MNIST on canvases of {size} pixels, {items} each, background "
        f"{options.background}, seed {seed}"
    )
    return Source("fashion-canvas", description, options.classes, splits, fields=IMAGE_AND_MASK)
