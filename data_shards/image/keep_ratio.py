"""Transforms that keep an image's aspect ratio, for tasks with a result at every pixel and for detection.

Both cut before they resize, as `TrainTransform` does, so that no more of a JPEG is decoded than its crop. A
program that resizes first has other pixels at the border of the crop, and a scale that is not rounded to
whole pixels of the crop.

Legend: H, W height and width of the source image; h, w of the result; all in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, uniform
from data_shards.image.annotations import VOID
from data_shards.image.formats import MAX_PIXELS
from data_shards.image.geometry import Crop, Geometry, ImageSize, check_flip_prob, sides

FLIP, SCALE, PLACE = 0, 1, 2  # numbers of a sample's draws; PLACE and the next are of the first attempt


@dataclass(frozen=True, kw_only=True)
class ScaleCropTransform:
    """Scale by a random factor, then a random crop of `image_size`, padded where the image is smaller.

    The factor is uniform in `scale_range`. At factor 1 the image is as large as `short_side` and `long_side`
    allow, which bound its sides; without both it has its own size. Padding is below and to the right of the
    image, mirrored or not.

    (0.5, 2.0) is the range of semantic segmentation ("Pyramid Scene Parsing Network", Zhao et al., CVPR 2017,
    section 5.1). (0.1, 2.0) with a `long_side` of 1024 and crops of 1024 is large-scale jittering ("Simple
    Copy-Paste", Ghiasi et al., CVPR 2021, section 3).
    DataError when a range is not ordered or a value out of its range.
    """

    image_size: ImageSize
    scale_range: tuple[float, float] = (0.5, 2.0)
    short_side: int | None = None
    long_side: int | None = None
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        sides(self.image_size)
        check_flip_prob(self.flip_prob)
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise DataError(f"scale_range {self.scale_range} must be 0 < low <= high, for example (0.5, 2.0)")
        for option, value in {"short_side": self.short_side, "long_side": self.long_side}.items():
            if value is not None and value < 1:
                raise DataError(f"{option} ({value}) must be at least 1, or null")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return sides(self.image_size)

    def geometry(self, height: int, width: int, key: DrawKey, attempt: int = 0) -> Geometry:
        """A random scale, a random place and perhaps mirrored; another `attempt` draws another place only."""
        draws, (low, high) = key.draws(Purpose.SCALE_CROP), self.scale_range
        scale = fitting_scale((height, width), self.short_side, self.long_side)
        scale *= low + uniform(draws, SCALE) * (high - low)
        top, tall, h = _cut(height, self.sides[0], scale, uniform(draws, PLACE + 2 * attempt))
        left, wide, w = _cut(width, self.sides[1], scale, uniform(draws, PLACE + 1 + 2 * attempt))
        mirrored, window = uniform(draws, FLIP) < self.flip_prob, None
        if (h, w) != self.sides:  # the window is what is mirrored, so its padding is on the left before
            window = Crop(0, w - self.sides[1] if mirrored else 0, *self.sides)
        return Geometry(Crop(top, left, tall, wide), (h, w), window, mirrored)


def _cut(side: int, result: int, scale: float, place: float) -> tuple[int, int, int]:
    """What is cut along a side of the image for `result` pixels: start, length, and length in the result."""
    if (scaled := round(side * scale)) < result:
        return 0, side, max(1, scaled)
    length = min(side, max(1, round(result / scale)))
    return int(place * (side - length + 1)), length, result


@dataclass(frozen=True, kw_only=True)
class ShortSideTransform:
    """Resize the image until its short side has one of `short_sides`, or its long side `long_side` pixels.

    Each of `short_sides` is equally likely, for example of (640, 672, 704) or of range(480, 801). The size of
    the result depends on the image. For an evaluation, give one of them, a `flip_prob` of 0, and `in_full`,
    which decodes at full scale. 480 ... 800 and 1333 are multi-scale training of detectors ("Swin
    Transformer", Liu et al., ICCV 2021, section 4.2).
    DataError when a value is out of its range.
    """

    short_sides: Sequence[int]
    long_side: int
    flip_prob: float = 0.5
    in_full: bool = False

    def __post_init__(self) -> None:
        check_flip_prob(self.flip_prob)
        if not self.short_sides or min(self.short_sides) < 1:
            raise DataError(f"short_sides ({self.short_sides}) must be pixels, for example (640, 800)")
        if not 1 <= self.long_side**2 <= MAX_PIXELS:
            raise DataError(
                f"long_side ({self.long_side}) must be at least 1 and its square at most {MAX_PIXELS}"
            )

    def geometry(self, height: int, width: int, key: DrawKey) -> Geometry:
        """The complete image at a random size, perhaps mirrored."""
        draws = key.draws(Purpose.SHORT_SIDE)
        short_side = self.short_sides[int(uniform(draws, SCALE) * len(self.short_sides))]
        scale = fitting_scale((height, width), short_side, self.long_side)
        resized = max(1, round(height * scale)), max(1, round(width * scale))
        mirrored = uniform(draws, FLIP) < self.flip_prob
        return Geometry(Crop(0, 0, height, width), resized, mirrored=mirrored, in_full=self.in_full)


def fitting_scale(image: tuple[int, int], short_side: int | None, long_side: int | None) -> float:
    """The largest factor after which neither side of an image (H, W) exceeds its bound; 1 without bounds."""
    bounds = (short_side, min(image)), (long_side, max(image))
    return min((bound / side for bound, side in bounds if bound is not None), default=1.0)


def draw_balanced(
    transform: ScaleCropTransform,
    labels: np.ndarray,
    key: DrawKey,
    *,
    max_share: float = 0.75,
    attempts: int = 10,
    void: int = VOID,
) -> Geometry:
    """The first attempt at a crop in which no class has `max_share` of the labelled pixels, or the last one.

    `labels` (H, W) are class ids of the complete image, `void` for pixels without one. This is cat_max_ratio
    of mmsegmentation's RandomCrop, counted in the source image.
    """
    height, width = labels.shape
    for attempt in range(attempts):
        geometry = transform.geometry(height, width, key, attempt)
        counts = np.bincount(labels[geometry.source.slices].ravel(), minlength=void + 1)
        counts[void] = 0
        if counts.max() < max_share * counts.sum():
            break
    return geometry
