"""What is drawn for a training image before it is decoded: its crop and its flip. H, W in pixels.

Random resized crop as in "Going Deeper with Convolutions" (Szegedy et al., CVPR 2015, section 6), in the form
that torchvision and timm share: ten tries of an area and a log-uniform aspect ratio, then a central crop.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from data_shards.errors import DataError
from data_shards.format.rng import Purpose, fold, uniform
from data_shards.image.sides import ImageSize, sides

TRIES = 10
MARGIN = 2  # pixels decoded for each one of the result, along a side, at least


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Random resized crop to a picture of `image_size`, a side or (height, width) in pixels, then a flip.

    `scale` is the range of the crop's area as a part of the image's, `ratio` that of its width over its
    height. Both are of the crop in the source image, as in torchvision: whatever the shape of the picture, a
    crop of another shape is stretched to it.
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
        if not 0 <= self.flip_prob <= 1:
            raise DataError(f"flip_prob ({self.flip_prob}) must be in 0 ... 1")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return sides(self.image_size)


class Crop(NamedTuple):
    """A rectangle of the image, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int

    def reduced(self, factor: int) -> "Crop":
        """The same in a picture of 1/factor the size, its edges moved up and left to whole pixels there."""
        return Crop(*(side // factor for side in self))


def dct_factor(crop: Crop, picture: tuple[int, int]) -> int:
    """By how much a JPEG may be decoded smaller before `crop` is resized to `picture` (H, W): 1, 2 or 4.

    Twice the pixels needed along either side are left to the resize, which keeps the picture within 44 dB of
    a full decode's on natural spectra, as PIL's reducing_gap=2 does. The factors between are slower than a
    full decode.
    """
    spare = min(crop.height // (MARGIN * picture[0]), crop.width // (MARGIN * picture[1]))
    return max(factor for factor in (1, 2, 4) if factor <= max(1, spare))


def draw_crop(height: int, width: int, key: tuple[int, int], transform: TrainTransform) -> Crop:
    """The crop of the sample `key` = (seed, position) in an image of height x width pixels."""
    draws = fold(Purpose.AUGMENT, *key)
    low, high = (math.log(ratio) for ratio in transform.ratio)
    for attempt in range(TRIES):
        u_area, u_ratio, u_top, u_left = (uniform(draws, 1 + 4 * attempt + i) for i in range(4))
        area = height * width * (transform.scale[0] + u_area * (transform.scale[1] - transform.scale[0]))
        ratio = math.exp(low + u_ratio * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w)
    return _central_crop(height, width, transform.ratio)


def draw_flip(key: tuple[int, int], transform: TrainTransform) -> bool:
    """Whether the sample `key` = (seed, position) is mirrored left to right."""
    return uniform(fold(Purpose.AUGMENT, *key), 0) < transform.flip_prob


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> Crop:
    """The largest central crop whose ratio is nearest to the range."""
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return Crop((height - h) // 2, (width - w) // 2, h, w)
