"""What is known of the objects of an image: the JSON record that detection reads, as COCO's files state it.

    {"image_id": 139, "file_name": "000000000139.jpg", "height": 426, "width": 640, "objects": [
     {"id": 26547, "label": 0, "box": [412.8, 157.61, 465.85, 295.62], "area": 2913.11, "iscrowd": 0,
      "segmentation": [[427.36, 170.83, ...]]}]}

A box is x1, y1, x2, y2 in pixels of the image (image/annotations.py), not clipped. `label` is the number of
the class, whose category id is in the manifest. `segmentation` is a list of polygons, or the run lengths
{"size": [H, W], "counts": [0, 5, ...]} as a list or as COCO's compressed text, or null. `"ignore": 1` marks
an object that nobody trains on. The area is the file's own, as COCO's metric needs it.

Legend: H, W height and width of the image in pixels; N objects; n runs of a mask.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data_shards.codecs.codec import Codec
from data_shards.codecs.documents import JsonCodec
from data_shards.errors import DataError
from data_shards.image.formats import check_size
from data_shards.image.polygons import polygon_counts
from data_shards.image.rle import check_counts, parse_counts

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any] | None
MOST_ID = 2**63 - 1


class ImageObject(NamedTuple):
    """An object of an image; see the record above."""

    id: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    iscrowd: int
    segmentation: Segmentation
    ignore: int = 0

    @property
    def bbox(self) -> list[float]:
        """The box as COCO's files have it: x, y, width, height."""
        x1, y1, x2, y2 = self.box
        return [x1, y1, x2 - x1, y2 - y1]

    @property
    def trains(self) -> bool:
        """Whether a detector is trained on it: mmdetection's rule for COCO. Crowds are background to it.

        Objects without an area, thinner than a pixel, or marked `ignore` are left out.
        """
        x1, y1, x2, y2 = self.box
        wide, tall = x2 - x1 >= 1, y2 - y1 >= 1
        return wide and tall and self.area > 0 and not self.iscrowd and not self.ignore


@dataclass(frozen=True)
class ImageObjects:
    """The record of an image."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[ImageObject, ...]

    def counts(self, item: ImageObject) -> np.ndarray:
        """The run lengths (image/rle.py) of the mask of an object at the image's size: (n,) int64."""
        found = item.segmentation
        if found is None:
            text = f"object {item.id} of image {self.image_id} has no segmentation, so no mask"
            raise DataError(f"{text}; train without masks, or pack annotations that have them")
        if not isinstance(found, Mapping):
            return polygon_counts(found, self.height, self.width)
        counts = found["counts"]
        return parse_counts(counts) if isinstance(counts, str) else np.array(counts, dtype=np.int64)


class ObjectsCodec(Codec):
    """A record of the objects of an image as a JSON text, of which everything is checked."""

    extensions = ("json",)
    _json = JsonCodec()

    def encode(self, value: Any) -> bytes:
        """The text of a record, a dictionary as above."""
        checked_record(value)
        return self._json.encode(value)

    def decode(self, body: bytes) -> ImageObjects:
        """The record; DataError for the first thing that is wrong in it, with the id of its object."""
        return checked_record(self._json.decode(body))


def checked_record(value: Any) -> ImageObjects:
    """A record from its JSON; DataError, one line, where it is none."""
    if not isinstance(value, dict):
        raise DataError(f"a record of objects is a JSON object, not {_shown(value)}")
    if missing := [key for key in ("image_id", "height", "width", "objects") if key not in value]:
        raise DataError(f"a record of objects without {missing[0]}")
    height, width = (integer(value[side], side, least=1) for side in ("height", "width"))
    try:
        check_size(height, width)
    except ValueError as error:
        raise DataError(str(error)) from error
    if not isinstance(value["objects"], list):
        raise DataError(f"objects are a list, not {_shown(value['objects'])}")
    if not isinstance(name := value.get("file_name", ""), str):
        raise DataError(f"file_name is a text, not {_shown(name)}")
    objects = tuple(_named_object(item, height, width) for item in value["objects"])
    return ImageObjects(integer(value["image_id"], "image_id"), name, height, width, objects)


def _named_object(value: Any, height: int, width: int) -> ImageObject:
    if not isinstance(value, dict):
        raise DataError(f"an object is a JSON object, not {_shown(value)}")
    try:
        return checked_object(value, height, width)
    except DataError as error:
        raise DataError(f"object {_shown(value.get('id'))}: {error}") from error


def checked_object(value: Mapping[str, Any], height: int, width: int) -> ImageObject:
    """An object of an image of H x W pixels from its JSON; DataError, without its id, where it is none."""
    if missing := [key for key in ("id", "label", "box", "area") if key not in value]:
        raise DataError(f"it has no {missing[0]}")
    return ImageObject(
        integer(value["id"], "id"),
        integer(value["label"], "label"),
        _box(value["box"], height, width),
        _area(value["area"]),
        _flag(value, "iscrowd"),
        segmentation(value.get("segmentation"), height, width),
        _flag(value, "ignore"),
    )


def _box(value: Any, height: int, width: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = numbers(value, "box", 4)
    if x2 < x1 or y2 < y1:
        raise DataError(f"box {_shown(value)} has a negative side")
    for low, high, side in ((x1, x2, width), (y1, y2, height)):
        shared = min(high, side) - max(low, 0)
        if shared < 0 or (shared == 0 and high > low):
            raise DataError(f"box {_shown(value)} lies outside of the image of {width} x {height} pixels")
    return x1, y1, x2, y2


def _area(value: Any) -> float:
    (area,) = numbers([value], "area", 1)
    if area < 0:
        raise DataError(f"area {_shown(value)} is below 0")
    return area


def _flag(value: Mapping[str, Any], name: str) -> int:
    if (flag := value.get(name, 0)) not in (0, 1) or isinstance(flag, float):
        raise DataError(f"{name} is 0 or 1, not {_shown(flag)}")
    return int(flag)


def segmentation(value: Any, height: int, width: int) -> Segmentation:
    """A segmentation that is one, of an image of H x W pixels; None where there is none. DataError."""
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return _run_lengths(value, height, width)
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        raise DataError(f"segmentation is {_shown(value)}; it is a list of polygons, or size and counts")
    reach = max(height, width)
    for part in value:
        points = numbers(part, "polygon")
        if len(points) % 2 or len(points) < 6:
            text = f"polygon of {len(points)} numbers; x and y of 3 points or more are 6, 8 ..."
            raise DataError(f"segmentation has a {text}")
        if min(points) < -reach or max(points) > 2 * reach:
            raise DataError(
                f"segmentation has a polygon far outside of the image of {width} x {height} pixels"
            )
    return value


def _run_lengths(value: Mapping[str, Any], height: int, width: int) -> Segmentation:
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        text = f"segmentation has run lengths of size {_shown(size)}, where the image has [{height}, {width}]"
        raise DataError(f"{text} (height, width)")
    if isinstance(counts, str):
        found = parse_counts(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**31 for count in counts):
        found = np.array(counts, dtype=np.int64)
    else:
        raise DataError(f"segmentation has counts {_shown(counts)}; they are integers from 0 on, or a text")
    check_counts(found, height, width)
    return value


def integer(value: Any, name: str, least: int = 0) -> int:
    """An integer of 64 bits from `least` on; DataError for a float, a text and others."""
    if type(value) is not int or not least <= value <= MOST_ID:
        raise DataError(f"{name} is an integer from {least} on, not {_shown(value)}")
    return value


def numbers(value: Any, name: str, count: int | None = None) -> list[float]:
    """Finite numbers, `count` of them; DataError for anything else, texts of digits too."""
    kinds = set(map(type, value)) if isinstance(value, list) else {type(value)}
    if (
        not isinstance(value, list)
        or bool in kinds
        or not all(issubclass(kind, int | float) for kind in kinds)
    ):
        raise DataError(
            f"{name} is {_shown(value)}; it must be {'' if count is None else f'{count} '}numbers"
        )
    if count is not None and len(value) != count:
        raise DataError(f"{name} has {len(value)} numbers, not {count}: {_shown(value)}")
    try:
        found = [float(number) for number in value]
    except OverflowError as error:
        raise DataError(f"{name} {_shown(value)} is too large") from error
    if not all(map(math.isfinite, found)):
        raise DataError(f"{name} {_shown(value)} is not finite")
    return found


def _shown(value: Any) -> str:
    """A value for a message, not too long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
