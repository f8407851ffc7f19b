"""Images and their objects: what detectors train on, and are evaluated on.

Both transforms read the members `image` and `annotations` (data_shards/codecs/objects.py). Images get
canvases that only their own sizes decide, so that a detector's answer depends on no neighbour:
`MultipleOf(32)`, or the `SmallestOf` some. All samples of a batch need the same canvas.

Legend: H, W height and width of a source image; h, w of what a transform gives; all in pixels; N objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_shards.codecs.objects import ImageObject, ImageObjects
from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.format.rng import ANY_KEY, DrawKey
from data_shards.image.annotations import source_pixels, transform_boxes
from data_shards.image.bilinear import decode_window, resize_window
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.multi_scale import MultiScaleTransform
from data_shards.image.pixels import image_size
from data_shards.image.resize_crop import check_bounds, fitted_size
from data_shards.image.rle import row_runs
from data_shards.stream.collate import Canvas, Collator, Fixed, MultipleOf, Padded, Ragged
from data_shards.stream.transform import Example, file_of

FIELDS = ("image", "annotations")
STRIDE = 32  # of the default canvas: that of the last stage's maps


@dataclass(frozen=True, kw_only=True)
class ObjectViews:
    """Training: image (3, h, w) uint8 at a random size, and its objects, in the order of the record.

    boxes (N, 4) float32 are x1, y1, x2, y2 in pixels of the result, clipped to it; labels (N,) int32. An
    object stays while its clipped box has an area, even where its mask has no pixel left, and its box is
    never taken from its mask. With `masks`, mask_lengths (N,) int32 are the numbers of runs of each object in
    mask_runs int32, which cover h x w row by row, alternately of zeros and ones, beginning with zeros.

    A mask's pixel is that of the source which covers its centre, as for label images. OpenCV's nearest pixel,
    which mmdetection takes, lies up to one pixel further up and left.

    Crowds and what `ImageObject.trains` refuses are left out: they are background. `antialias`: see
    data_shards/image/bilinear.py.
    """

    views: MultiScaleTransform
    num_classes: int
    masks: bool = True
    canvas: Canvas = MultipleOf(STRIDE)
    antialias: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The image and the record of its objects."""
        return FIELDS

    @property
    def collators(self) -> Mapping[str, Collator]:
        """A canvas for the image; rows for the objects."""
        found: dict[str, Collator] = {
            "image": Padded(self.canvas, 0, np.uint8, (3,), channels_last=True),
            "boxes": Ragged(np.float32, (4,)),
            "labels": Ragged(np.int32),
        }
        if self.masks:
            found |= {"mask_runs": Ragged(np.int32), "mask_lengths": Ragged(np.int32)}
        return found

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """A random view of the image, and the objects in it."""
        body, record = image_and_objects(members, self.num_classes)
        steps = self.views.steps(record.height, record.width, key)
        items = [item for item in record.objects if item.trains]
        boxes, kept = boxes_after(steps, items)
        items = [item for item, is_kept in zip(items, kept.tolist(), strict=True) if is_kept]
        found: Example = {
            "image": image_after(steps, body, self.antialias),
            "boxes": boxes[kept],
            "labels": np.array([item.label for item in items], dtype=np.int32),
        }
        return {**found, **masks_after(steps, record, items)} if self.masks else found


@dataclass(frozen=True, kw_only=True)
class ObjectImages:
    """Evaluation: the complete image, resized as `fitted_size` does, and what its objects are compared by.

    image (3, h, w) uint8; image_id, that of the record; source_size (2,) int32, H and W; annotations (bytes,)
    uint8, the checked record as it is stored.
    """

    num_classes: int
    short_side: int = 800
    long_side: int = 1333
    canvas: Canvas = MultipleOf(STRIDE)
    antialias: bool = False

    def __post_init__(self) -> None:
        check_bounds(self.long_side, self.short_side, 1.0)

    @property
    def fields(self) -> tuple[str, ...]:
        """The image and the record of its objects."""
        return FIELDS

    @property
    def collators(self) -> Mapping[str, Collator]:
        """A canvas for the image; bytes of any number for the record."""
        return {
            "image": Padded(self.canvas, 0, np.uint8, (3,), channels_last=True),
            "image_id": Fixed((), np.int64),
            "source_size": Fixed((2,), np.int32),
            "annotations": Ragged(np.uint8),
        }

    def __call__(self, members: Members, key: DrawKey = ANY_KEY) -> Example:
        """The image, and its record; no draw is made."""
        body, record = image_and_objects(members, self.num_classes)
        return {
            **self.resized(body, record.height, record.width),
            "image_id": record.image_id,
            "annotations": np.frombuffer(file_of(members, "annotations"), dtype=np.uint8),
        }

    def resized(self, body: bytes, height: int, width: int) -> Example:
        """image and source_size of the file of an image of H x W pixels."""
        size = fitted_size(height, width, self.long_side, self.short_side)
        step = Geometry(Crop(0, 0, height, width), size, in_full=True)
        image = image_after([step], body, self.antialias)
        return {"image": image, "source_size": np.array((height, width), dtype=np.int32)}


def image_and_objects(members: Members, num_classes: int) -> tuple[bytes, ImageObjects]:
    """The file of the image, and the record of its objects.

    DataError unless the record is one, with labels below `num_classes`, and has the size of the image.
    """
    body = file_of(members, "image")
    record: ImageObjects = CODECS["objects"].decode(file_of(members, "annotations"))
    if (size := image_size(body)) != (record.height, record.width):
        text = f"annotations of {record.height} x {record.width} pixels for an image of {size[0]} x {size[1]}"
        raise DataError(f"{text}; pack them together")
    for item in record.objects:
        if item.label >= num_classes:
            text = f"object {item.id} has label {item.label}; labels are 0 ... {num_classes - 1}"
            raise DataError(f"{text}; correct the labels, or the number of classes")
    return body, record


def image_after(steps: Sequence[Geometry], body: bytes, antialias: bool = False) -> np.ndarray:
    """The image (3, h, w) uint8 after the steps, of which no more is decoded than they need."""
    image = decode_window(body, steps[0], antialias=antialias)
    for step in steps[1:]:
        region = partial(_cut, image.transpose(1, 2, 0))
        image = resize_window(region, step, antialias=antialias)
    return image


def _cut(pixels: np.ndarray, crop: Crop) -> np.ndarray:
    return pixels[crop.slices]


def boxes_after(steps: Sequence[Geometry], items: Sequence[ImageObject]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) float32 after the steps, clipped by each, and which of them (N,) still have an area."""
    boxes = np.array([item.box for item in items], dtype=np.float64).reshape(-1, 4)
    kept = np.ones(len(items), dtype=bool)
    for step in steps:
        boxes, visible = transform_boxes(boxes, step)
        kept &= visible & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes.astype(np.float32), kept


def masks_after(
    steps: Sequence[Geometry], record: ImageObjects, items: Sequence[ImageObject]
) -> dict[str, np.ndarray]:
    """The masks of objects after the steps, by the nearest pixels: mask_runs and mask_lengths."""
    rows, columns = source_pixels(steps)
    runs = [row_runs(record.counts(item), record.height, rows, columns) for item in items]
    return {
        "mask_runs": np.concatenate([np.zeros(0, dtype=np.int32), *runs]),
        "mask_lengths": np.array([len(part) for part in runs], dtype=np.int32),
    }
