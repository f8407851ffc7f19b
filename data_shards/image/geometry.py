"""The geometry of a transform: what is cut out of an image, resized and mirrored, drawn before it is decoded.

A transform gives the geometry of a sample from the image's size and the sample's key. The random resized crop
is that of "Going Deeper with Convolutions" (Szegedy et al., CVPR 2015, section 6), in the form that
torchvision and timm share: ten tries of an area and a log-uniform aspect ratio, then a central crop.

Legend: H, W height and width of the source image; h, w of the result; all in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from data_shards.errors import DataError
from data_shards.format.rng import ANY_KEY, DrawKey, Purpose, uniform
from data_shards.image.formats import MAX_PIXELS

TRIES = 10
MARGIN = 2  # pixels decoded for each pixel of the result, along a side, at least

ImageSize = int | tuple[int, int]  # a side of a square, or height and width, in pixels


def sides(image_size: ImageSize) -> tuple[int, int]:
    """Height and width; DataError when one of them is below 1."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise DataError(f"image_size ({image_size}) must be at least 1")
    return height, width


def check_flip_prob(flip_prob: float) -> None:
    """DataError unless it is a probability."""
    if not 0 <= flip_prob <= 1:
        raise DataError(f"flip_prob ({flip_prob}) must be in 0 ... 1")


class Crop(NamedTuple):
    """A rectangle of an image, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int

    def reduced(self, factor: int) -> "Crop":
        """The same rectangle of the image at 1/factor of its size, rounded down."""
        return Crop(*(side // factor for side in self)) if factor > 1 else self

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the image's pixels."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def slices_in(self, other: "Crop") -> tuple[slice, slice]:
        """The rows and columns of the pixels of `other`, which contains this rectangle."""
        return Crop(self.top - other.top, self.left - other.left, self.height, self.width).slices


def enclosing(crops: Sequence[Crop]) -> Crop:
    """The smallest rectangle that contains all of `crops`."""
    top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
    bottom = max(crop.top + crop.height for crop in crops)
    right = max(crop.left + crop.width for crop in crops)
    return Crop(top, left, bottom - top, right - left)


class Geometry(NamedTuple):
    """The steps from an image to a result, in this order; the same for its boxes, label images and frames.

    `crop` is cut out of the image and resized to `resized` (height, width). `window` is the rectangle of that
    which is kept; None keeps all of it. A window may reach beyond it: there the result has a fill value.
    Last, it is mirrored left to right where `mirrored`. `in_full` decodes the whole image at its own size,
    otherwise decoding may be restricted to the crop, at a reduced size (`factor`).

    Coordinates are continuous: pixel i of a row covers [i, i + 1), and its centre is at i + 1/2. A point x of
    the image is at (x - left of `source`) * width of `resized` / width of `source` - left of the window in
    the result, and at the result's width minus that where it is mirrored. Rows are alike.
    """

    crop: Crop
    resized: tuple[int, int]
    window: Crop | None = None
    mirrored: bool = False
    in_full: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return self.resized if self.window is None else (self.window.height, self.window.width)

    @property
    def factor(self) -> int:
        """The factor by which the image may be decoded smaller: 1, 2 or 4."""
        return 1 if self.in_full else dct_factor(self.crop, self.resized)

    @property
    def source(self) -> Crop:
        """The part of the image that is resized: the crop, its edges on whole pixels at 1/factor."""
        if (factor := self.factor) == 1:
            return self.crop
        return Crop(*(side // factor * factor for side in self.crop))


class GeometryChooser(Protocol):
    """What decides the geometry of an image."""

    def geometry(self, height: int, width: int, key: DrawKey) -> Geometry:
        """The geometry of a view of a sample, whose image has height x width pixels."""


class ImageTransform(GeometryChooser, Protocol):
    """One whose results have the same size."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Random resized crop to `image_size`, a side or (height, width) in pixels, then a random flip.

    `scale` is the range of the crop's area as a fraction of the image's, `ratio` that of its width over its
    height. Both are of the crop in the source image, as in torchvision: a crop of another shape than
    `image_size` is stretched.
    DataError when a range is not ordered or a value out of its range.
    """

    image_size: ImageSize
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        sides(self.image_size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"scale {self.scale} must be 0 < low <= high <= 1, for example (0.08, 1.0)")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(f"ratio {self.ratio} must be 0 < low <= high, for example (0.75, 1.333)")
        check_flip_prob(self.flip_prob)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return sides(self.image_size)

    def geometry(self, height: int, width: int, key: DrawKey) -> Geometry:
        """A random crop, resized and perhaps mirrored."""
        crop = draw_crop(height, width, key, self)
        return Geometry(crop, self.sides, mirrored=draw_flip(key, self))


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize to `image_size`, a side or (height, width) in pixels, in one of two ways.

    `crop_ratio` 1 resizes the complete image, which changes its aspect ratio. Below 1, such as 0.875, the
    image is resized until it just covers h / crop_ratio x w / crop_ratio pixels, keeping its aspect ratio,
    and the centre is cut out, as in the evaluations of Swin and timm. (Of a square, the short side becomes
    size / crop_ratio.)
    """

    image_size: ImageSize
    crop_ratio: float = 1.0

    def __post_init__(self) -> None:
        sides(self.image_size)
        if not 0 < self.crop_ratio <= 1:
            raise DataError(f"crop_ratio ({self.crop_ratio}) must be above 0 and at most 1")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return sides(self.image_size)

    def geometry(self, height: int, width: int, key: DrawKey = ANY_KEY) -> Geometry:
        """The same for every key; DataError when the resized image would be too large."""
        complete = Crop(0, 0, height, width)
        if self.crop_ratio == 1:
            return Geometry(complete, self.sides, in_full=True)
        resized = covering((height, width), self.sides, self.crop_ratio)
        if resized[0] * resized[1] > MAX_PIXELS:
            raise DataError(
                f"image of {height} x {width} pixels: its centre crop needs a resize to {resized[0]} x "
                f"{resized[1]} pixels, of at most {MAX_PIXELS}; eval_crop=1.0 resizes without a crop"
            )
        (h, w), top, left = self.sides, (resized[0] - self.sides[0]) // 2, (resized[1] - self.sides[1]) // 2
        return Geometry(complete, resized, window=Crop(top, left, h, w), in_full=True)


def dct_factor(crop: Crop, resized: tuple[int, int]) -> int:
    """The factor by which a JPEG may be decoded smaller before `crop` is resized to (h, w): 1, 2 or 4.

    The crop keeps at least twice the pixels of the result along either side. This keeps the result within
    44 dB of a full decode's on natural spectra, as PIL's reducing_gap=2 does. The factors between are slower
    than a full decode.
    """
    spare = min(crop.height // (MARGIN * resized[0]), crop.width // (MARGIN * resized[1]))
    return 4 if spare >= 4 else 2 if spare >= 2 else 1


def draw_crop(height: int, width: int, key: DrawKey, transform: TrainTransform) -> Crop:
    """The crop of a view of a sample, in an image of height x width pixels."""
    draws = key.draws(Purpose.AUGMENT)
    low, high = (math.log(ratio) for ratio in transform.ratio)
    for attempt in range(TRIES):
        u_area, u_ratio, u_top, u_left = (uniform(draws, 1 + 4 * attempt + i) for i in range(4))
        area = height * width * (transform.scale[0] + u_area * (transform.scale[1] - transform.scale[0]))
        ratio = math.exp(low + u_ratio * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w)
    return _central_crop(height, width, transform.ratio)


def draw_flip(key: DrawKey, transform: TrainTransform) -> bool:
    """Whether a view of a sample is mirrored left to right."""
    return uniform(key.draws(Purpose.AUGMENT), 0) < transform.flip_prob


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> Crop:
    """The largest central crop whose ratio is nearest to the range."""
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def covering(image: tuple[int, int], result: tuple[int, int], crop_ratio: float) -> tuple[int, int]:
    """The size to which an image (H, W) is resized so that it covers (h, w) / crop_ratio."""
    tall, wide = (round(side / crop_ratio) for side in result)
    is_tall = image[0] * wide >= image[1] * tall  # relative to what it must cover: then the width decides
    covered, side = (wide, image[1]) if is_tall else (tall, image[0])
    height, width = (round(length * covered / side) for length in image)
    return max(tall, height), max(wide, width)
