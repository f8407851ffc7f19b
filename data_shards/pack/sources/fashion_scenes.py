"""Fashion scenes: garments of Fashion-MNIST as the objects of pictures, with exact boxes and masks.

A scene has a textured background and garments of random size, shape, place and tint, pasted one after the
other. The mask of an object are the pixels of its silhouette that no later one hides; its box is the tight
one of the mask, and its area the number of pixels. An object of fewer than `LEAST_PIXELS` is no annotation.
The tint does not depend on the class, so that colours alone tell nothing.

The number of a scene decides its kind, so that any 16 in a row have what COCO has: one without objects
(`EMPTY`), a grey one (`GREY`), two with a crowd (`CROWD`), which is a pile of small garments of one class in
one annotation, and two where an object is cut in parts by another (`CUT`). The others, and what else is in
these, are as many garments as the options say. Heights and widths are drawn apart. The classes have category
ids with gaps, in an order of their own, as categories of a JSON may have.

Scene i of a split is a function of the seed and of i: any worker makes the same pixels, in integers
throughout. Training scenes have garments of Fashion-MNIST's 60,000 training images, those for validation of
its 10,000 test images.

Legend: N scenes, G garments, H, W height and width of a scene, in pixels.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_OBJECTS
from data_shards.format.rng import Purpose, fold, hashes
from data_shards.format.samples import Samples, Source
from data_shards.image.geometry import Crop
from data_shards.image.rle import encode_mask, extent, format_counts
from data_shards.pack.sources.fashion_mnist import FASHION_CLASSES
from data_shards.pack.sources.garments import Garments, Item, enlarge, garment_splits, paint, texture, within

SCENES = "garments of Fashion-MNIST as objects in scenes"  # how the description begins
VERSION = 1  # of the way in which a scene is made
KINDS, EMPTY, GREY, CROWD, CUT = 16, (7,), (11,), (2, 10), (4, 12)  # numbers of scenes, modulo `KINDS`
SIDES = (20, 24, 28, 34, 40, 48, 56, 68, 80, 96, 112, 136, 160, 192, 224, 272, 320)  # of garments, in pixels
DRAWS_OF_SCENE, DRAWS_OF_ITEM = 3, 8
PILE = 8  # garments of a crowd
PER_SCENE = 50  # garments at most, besides crowds and those that cut or are cut
IDS_OF_SCENE = 100  # annotations have ids from 100 times the number of the scene on
LEAST_PIXELS, MIN_SIDE = 12, 64
UPRIGHT = (0, 2, 3, 4, 6)  # classes whose garments fill the middle from top to bottom
# By class of Fashion-MNIST, and the order in which a JSON lists them: neither is sorted as the other is.
CATEGORY_IDS = (1, 2, 4, 5, 7, 8, 10, 11, 13, 15)
ORDER = (3, 0, 9, 5, 1, 8, 2, 7, 4, 6)


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How scenes are made: ranges of height and of width in pixels, and of the number of garments.

    DataError for a value out of range.
    """

    sides: tuple[int, int] = (128, 256)
    items: tuple[int, int] = (1, 6)

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.sides[0] <= self.sides[1] <= 1024:
            raise DataError(f"--scenes-size {self.sides} must be {MIN_SIDE} <= low <= high <= 1024 pixels")
        if not 1 <= self.items[0] <= self.items[1] <= PER_SCENE:
            raise DataError(f"--scenes-items {self.items} must be 1 <= low <= high <= {PER_SCENE}")


class Placed(NamedTuple):
    """A garment of a scene, and the annotation that it belongs to: those of a crowd share theirs."""

    item: Item
    owner: int
    iscrowd: int = 0


@dataclass(frozen=True)
class SceneSamples:
    """The scenes `rows` (N,) of a split."""

    rows: np.ndarray
    garments: Garments
    key: int
    options: SceneOptions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        row = int(self.rows[i])
        (height, width), placed = self.layout(row)
        image = texture(fold(self.key, row, 1), height, width)
        owners = np.full((height, width), -1, dtype=np.int16)
        for item, owner, _ in placed:
            garment = enlarge(self.garments.image(item.number), item.place.height, item.place.width)
            where, inside, _ = paint(image, item, garment)
            owners[where][inside] = owner
        if row % KINDS in GREY:
            image = (image @ np.array([77, 150, 29], dtype=np.uint16) >> 8).astype(np.uint8)
        first = {one.owner: one for one in reversed(placed)}
        objects = [self._object(row, first[owner], owners == owner) for owner in sorted(first)]
        record = {"image_id": row + 1, "file_name": f"{row + 1:012d}.jpg", "height": height, "width": width}
        return {"image": image, "annotations": record | {"objects": [one for one in objects if one]}}

    def _object(self, row: int, placed: Placed, mask: np.ndarray) -> dict[str, Any] | None:
        """The annotation of the pixels of `mask` (H, W); None where they are too few."""
        counts = encode_mask(mask)
        if (area := int(counts[1::2].sum())) < LEAST_PIXELS:
            return None
        box = extent(counts, len(mask))
        return {
            "id": IDS_OF_SCENE * (row + 1) + placed.owner,
            "label": ORDER.index(self.garments.label(placed.item.number)),
            "box": [box.left, box.top, box.right, box.bottom],
            "area": area,
            "iscrowd": placed.iscrowd,
            "segmentation": {  # COCO has crowds as a list of counts
                "size": list(mask.shape),
                "counts": counts.tolist() if placed.iscrowd else format_counts(counts),
            },
        }

    def layout(self, row: int) -> tuple[tuple[int, int], list[Placed]]:
        """Height and width of scene `row`, and its garments, each of which hides those before it."""
        most = self.options.items[1]
        draws = hashes(fold(self.key, row), DRAWS_OF_SCENE + DRAWS_OF_ITEM * (most + PILE + 2)).tolist()
        size = within(draws[0], self.options.sides), within(draws[1], self.options.sides)
        parts = [draws[at : at + DRAWS_OF_ITEM] for at in range(DRAWS_OF_SCENE, len(draws), DRAWS_OF_ITEM)]
        kind = row % KINDS
        if kind in EMPTY:
            return size, []
        placed = []
        if kind in CROWD:
            placed = [Placed(item, 0, iscrowd=1) for item in self._pile(size, parts[most : most + PILE])]
        if kind in CUT:
            placed = [Placed(item, owner) for owner, item in enumerate(self._cut(size, parts[most + PILE :]))]
        start = placed[-1].owner + 1 if placed else 0
        items = [self._item(size, part) for part in parts[: within(draws[2], self.options.items)]]
        others = [Placed(item, start + number) for number, item in enumerate(items)]
        return size, (others + placed if kind in CUT else placed + others)

    def _item(self, size: tuple[int, int], draws: list[int]) -> Item:
        """A garment of any of `SIDES` up to 3/4 of the short side, of which half a side is in the scene."""
        sides = [side for side in SIDES if side <= min(size) * 3 // 4]
        height = sides[draws[0] % len(sides)]
        width = height * within(draws[7], (96, 170)) // 128  # 3/4 ... 4/3
        top, left = (
            within(draw, (-side // 4, length - side * 3 // 4))
            for draw, side, length in zip(draws[1:3], (height, width), size, strict=True)
        )
        return Item(draws[6] % self.garments.total, Crop(top, left, height, width), _tint(draws))

    def _pile(self, size: tuple[int, int], parts: list[list[int]]) -> list[Item]:
        """Small copies of one garment, in a region of half the sides: a crowd."""
        side, (height, width) = max(MIN_SIDE // 4, min(size) // 5), size
        top, left = within(parts[0][3], (0, height // 2)), within(parts[0][4], (0, width // 2))
        number = parts[0][6] % self.garments.total
        return [
            Item(
                number,
                Crop(
                    top + within(draws[1], (0, height // 2 - side)),
                    left + within(draws[2], (0, width // 2 - side)),
                    side,
                    side,
                ),
                _tint(draws),
            )
            for draws in parts
        ]

    def _cut(self, size: tuple[int, int], parts: list[list[int]]) -> list[Item]:
        """A garment, and over its middle a narrow one that is longer: parts are left of the first."""
        side = min(size) * 5 // 8
        top, left = (
            within(draw, (0, length - side)) for draw, length in zip(parts[0][1:3], size, strict=True)
        )
        tall, narrow = side * 5 // 4, side // 4
        over = Crop(top - side // 8, left + (side - narrow) // 2, tall, narrow)
        places = Crop(top, left, side, side), over
        return [
            Item(self._upright(draws[6]), place, _tint(draws))
            for draws, place in zip(parts, places, strict=True)
        ]

    def _upright(self, draw: int) -> int:
        """The number of the first garment of the classes `UPRIGHT` from a drawn one on."""
        start = draw % self.garments.total
        found = np.flatnonzero(np.isin(np.roll(self.garments.labels, -start)[:200], UPRIGHT))
        return (start + (int(found[0]) if len(found) else 0)) % self.garments.total

    def select(self, rows: np.ndarray) -> "SceneSamples":
        """The scenes at `rows`, with the garments that they need."""
        chosen = self.rows[rows]
        needed = (one.item.number for row in chosen.tolist() for one in self.layout(row)[1])
        return replace(self, rows=chosen, garments=self.garments.only(needed))

    def describe(self, i: int) -> str:
        """Its number in the split."""
        return f"scene {int(self.rows[i])}"

    def label(self, i: int) -> int:
        """-1: a scene has a class for each object."""
        return -1

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the pixels."""
        return np.array([3 * np.prod(self.layout(int(row))[0]) for row in self.rows], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the garments and of the numbers that decide every pixel."""
        text = (
            f"fashion-scenes {VERSION} {self.rows.tolist()} {self.key} {self.options} {self.garments.digest}"
        )
        return hashlib.sha256(text.encode()).hexdigest()


def _tint(draws: list[int]) -> np.ndarray:
    return np.array([within(draw, (64, 255)) for draw in draws[3:6]])


def fashion_scenes(
    directory: str | Path | None = None,
    num_train: int = 4096,
    num_val: int = 512,
    options: SceneOptions | None = None,
    seed: int = 0,
) -> Source:
    """Scenes of Fashion-MNIST's garments; `directory` as that of `fashion_mnist`, and so its errors."""
    options = options or SceneOptions()
    splits: dict[str, Samples] = {
        one.name: SceneSamples(
            rows=one.rows,
            garments=one.garments,
            key=fold(Purpose.SCENE, seed, one.stream),
            options=options,
        )
        for one in garment_splits(directory, num_train, num_val, "scenes")
    }
    size, items = ("-".join(map(str, limits)) for limits in (options.sides, options.items))
    return Source(
        "fashion-scenes",
        f"{SCENES} of {size} pixels, {items} each, seed {seed}",
        tuple(FASHION_CLASSES[label] for label in ORDER),
        splits,
        fields=IMAGE_AND_OBJECTS,
        category_ids=tuple(CATEGORY_IDS[label] for label in ORDER),
    )
