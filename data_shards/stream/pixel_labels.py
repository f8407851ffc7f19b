"""Images with a class for every pixel: what semantic segmentation trains on, and is evaluated on.

Both transforms read the members `image` and `mask`. A mask is decoded before its image, and is resized
without interpolation, by the pixel that covers the centre. `VOID` (255) stands for pixels without a class.

Legend: H, W height and width of a source image; h, w of what a transform gives; all in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.format.rng import ANY_KEY, DrawKey
from data_shards.image.annotations import VOID, check_same_size
from data_shards.image.bilinear import decode_window, resize_window
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.pixels import decode_pixels, image_size
from data_shards.image.resize_crop import (
    ResizeCropTransform,
    check_bounds,
    draw_balanced_crop,
    fitted_size,
    valid_size,
)
from data_shards.stream.collate import Canvas, Collator, Fixed, MultipleOf, Padded, image_tensor
from data_shards.stream.transform import Example, file_of


@dataclass(frozen=True, kw_only=True)
class PixelLabelCrops:
    """Training: image (3, h, w) uint8, mask (h, w) uint8, and size (2,) int32, the valid height and width.

    A crop in which one class has `max_share` of the labelled pixels is drawn again up to `redraws` times.
    The mask decides this, and only the part of the JPEG that the last crop needs is decoded. Beyond the valid
    size, below and on the right, the mask is `VOID` and the image 0. Padding must be 0 after the image is
    normalized, which is the mean colour: see `PixelAugment` of data_shards/augment/pixel_labels.py.
    """

    crop: ResizeCropTransform
    num_classes: int
    max_share: float = 0.75
    redraws: int = 10
    antialias: bool = False  # see data_shards/image/bilinear.py

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        if not 0 < self.max_share <= 1:
            raise DataError(f"max_share ({self.max_share}) must be above 0 and at most 1, which turns it off")
        if self.redraws < 0:
            raise DataError(f"redraws ({self.redraws}) must be at least 0")

    @property
    def fields(self) -> tuple[str, ...]:
        """The image and its mask."""
        return ("image", "mask")

    @property
    def collators(self) -> Mapping[str, Collator]:
        """One size for all."""
        sides = self.crop.sides
        return {
            "image": image_tensor(sides),
            "mask": Fixed(sides, np.uint8),
            "size": Fixed((2,), np.int32),
        }

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """A crop of the image and of its mask."""
        body, mask = image_and_mask(members, self.num_classes)
        geometry, crop = draw_balanced_crop(
            self.crop, mask, key, max_share=self.max_share, redraws=self.redraws
        )
        image = decode_window(body, geometry, antialias=self.antialias)
        return {"image": image, "mask": crop, "size": np.array(valid_size(geometry), dtype=np.int32)}


@dataclass(frozen=True, kw_only=True)
class PixelLabelImages:
    """Evaluation: the complete image at each of `ratios`, and the mask at the size of the source.

    The first is `image`, the others are `image_1`, `image_2` ...: (3, h, w) uint8, of `fitted_size` with
    `long_side` and `short_side`; without these two, as large as the source times the ratio, rounded half up.
    mask is (H, W) uint8. The tensors have canvases, which only the sizes of a sample decide, by `canvas` and
    `mask_canvas`, and NAME_size (B, 2) is the height and width of each content (`Padded`). The default canvas
    is as large as its content, for batches of one sample.
    """

    num_classes: int
    long_side: int | None = 2048
    short_side: int | None = 512
    ratios: tuple[float, ...] = (1.0,)
    antialias: bool = False
    canvas: Canvas = MultipleOf(1)
    mask_canvas: Canvas = MultipleOf(1)

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        if not self.ratios or min(self.ratios) <= 0:
            raise DataError(f"ratios {self.ratios} must be above 0, for example (1.0,)")
        if (self.long_side is None) != (self.short_side is None):
            raise DataError("long_side and short_side bound an image together; give both or neither")
        if self.long_side is not None and self.short_side is not None:
            check_bounds(self.long_side, self.short_side, max(self.ratios))

    @property
    def image_names(self) -> tuple[str, ...]:
        """The names of the images, one a ratio."""
        return tuple("image" if i == 0 else f"image_{i}" for i in range(len(self.ratios)))

    @property
    def fields(self) -> tuple[str, ...]:
        """The image and its mask."""
        return ("image", "mask")

    @property
    def collators(self) -> Mapping[str, Collator]:
        """A canvas for each image and for the mask."""
        image = Padded(self.canvas, 0, np.uint8, (3,), channels_last=True)
        return dict.fromkeys(self.image_names, image) | {"mask": Padded(self.mask_canvas, VOID, np.uint8)}

    def __call__(self, members: Members, key: DrawKey = ANY_KEY) -> Example:
        """The image at each ratio, and its mask; no draw is made."""
        body, mask = image_and_mask(members, self.num_classes)
        return {**self.resized(body), "mask": mask}

    def resized(self, body: bytes) -> dict[str, np.ndarray]:
        """The image of a file at each ratio, by name; DataError when it cannot be decoded."""
        pixels, images = decode_pixels(body), {}
        height, width = pixels.shape[:2]
        for name, ratio in zip(self.image_names, self.ratios, strict=True):
            geometry = Geometry(Crop(0, 0, height, width), self.size(height, width, ratio))
            images[name] = resize_window(lambda crop: pixels[crop.slices], geometry, antialias=self.antialias)
        return images

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """Height and width that an image of H x W pixels gets at a ratio."""
        if self.long_side is None or self.short_side is None:
            return max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))
        return fitted_size(height, width, self.long_side, self.short_side, ratio)


def check_num_classes(num_classes: int) -> None:
    """DataError unless the ids of so many classes and `VOID` fit 8 bits."""
    if not 1 <= num_classes <= VOID:
        raise DataError(f"num_classes ({num_classes}) must be in 1 ... {VOID}; id {VOID} is that of no class")


def image_and_mask(members: Members, num_classes: int) -> tuple[bytes, np.ndarray]:
    """The file of the image, and the class ids of its pixels (H, W) uint8.

    DataError unless the mask has the size of the image, and ids below `num_classes` or `VOID`.
    """
    body, mask = file_of(members, "image"), CODECS["label_image"].decode(file_of(members, "mask"))
    check_same_size(mask, image_size(body))
    return body, class_ids(mask, num_classes)


def class_ids(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """A label image as uint8; DataError for an id that is neither a class nor `VOID`."""
    wrong = labels[(labels >= num_classes) & (labels != VOID)]
    if len(wrong):
        raise DataError(
            f"a label image with id {int(wrong.max())}; the ids of classes are 0 ... {num_classes - 1}, and "
            f"{VOID} is that of no class; correct the labels, or the number of classes"
        )
    return labels.astype(np.uint8, copy=False)
