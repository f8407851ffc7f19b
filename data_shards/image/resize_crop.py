"""The geometry of semantic segmentation: the image is scaled to whole pixels, and a crop of that is kept.

The order is that of mmsegmentation's Resize, RandomCrop and Pad, so that a crop holds the pixels of the
completely resized image.

Legend: H, W height and width of the source image; h, w of the result; all in pixels.
"""

from dataclasses import dataclass

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, uniform
from data_shards.image.annotations import VOID, transform_labels
from data_shards.image.formats import MAX_PIXELS
from data_shards.image.geometry import Crop, Geometry, ImageSize, check_flip_prob, sides

FLIP, RATIO, PLACE = 0, 1, 2  # numbers of a sample's draws; PLACE and the next are of the first attempt


@dataclass(frozen=True, kw_only=True)
class ResizeCropTransform:
    """Resize by a random ratio, keeping the aspect ratio, then keep a random crop of `image_size`.

    The image is resized to `fitted_size` at a ratio that is uniform in `ratio_range`. A side of the result
    beyond the resized image is padding, below it and on its right, mirrored or not. DataError when a range is
    not ordered or a value out of its range.
    """

    image_size: ImageSize
    long_side: int = 2048
    short_side: int = 512
    ratio_range: tuple[float, float] = (0.5, 2.0)
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        sides(self.image_size)
        check_flip_prob(self.flip_prob)
        check_bounds(self.long_side, self.short_side, self.ratio_range[1])
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise DataError(f"ratio_range {self.ratio_range} must be 0 < low <= high, for example (0.5, 2.0)")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return sides(self.image_size)

    def geometry(self, height: int, width: int, key: DrawKey, attempt: int = 0) -> Geometry:
        """A random ratio, a random place and perhaps mirrored; another `attempt` draws another place only."""
        draws, (low, high) = key.draws(Purpose.SCALE_CROP), self.ratio_range
        ratio = low + uniform(draws, RATIO) * (high - low)
        resized = fitted_size(height, width, self.long_side, self.short_side, ratio)
        (h, w), mirrored = self.sides, uniform(draws, FLIP) < self.flip_prob
        top, left = (
            int(uniform(draws, PLACE + axis + 2 * attempt) * (max(0, scaled - side) + 1))
            for axis, (scaled, side) in enumerate(zip(resized, (h, w), strict=True))
        )
        if (
            mirrored and resized[1] < w
        ):  # the window is what is mirrored, so its padding is on the left before
            left = resized[1] - w
        return Geometry(Crop(0, 0, height, width), resized, Crop(top, left, h, w), mirrored)


def check_bounds(long_side: int, short_side: int, ratio: float) -> None:
    """DataError unless the largest image that fits them may be decoded."""
    if not 1 <= short_side <= long_side:
        raise DataError(f"short_side ({short_side}) and long_side ({long_side}) must be 1 <= short <= long")
    if long_side * short_side * ratio**2 > MAX_PIXELS:
        text = f"long_side ({long_side}) x short_side ({short_side}) at ratio {ratio:g}"
        raise DataError(f"{text} is more than {MAX_PIXELS} pixels; make them smaller")


def fitted_size(
    height: int, width: int, long_side: int, short_side: int, ratio: float = 1.0
) -> tuple[int, int]:
    """The size of an image that is enlarged or shrunk until it just fits two bounds, keeping its shape.

    The bounds are `long_side` and `short_side` times `ratio`, rounded down to whole pixels, as mmsegmentation
    does. The sides are rounded half up: at (2048, 512), 300 x 400 becomes 512 x 683.
    """
    long_bound, short_bound = (max(1, int(side * ratio)) for side in (long_side, short_side))
    scale = min(short_bound / min(height, width), long_bound / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def valid_size(geometry: Geometry) -> tuple[int, int]:
    """Height and width of the part of a result of `ResizeCropTransform` that is no padding."""
    (h, w), (tall, wide) = geometry.sides, geometry.resized
    return min(h, tall), min(w, wide)


def draw_balanced_crop(
    transform: ResizeCropTransform,
    labels: np.ndarray,
    key: DrawKey,
    *,
    max_share: float = 0.75,
    redraws: int = 10,
    void: int = VOID,
) -> tuple[Geometry, np.ndarray]:
    """A crop in which no class has `max_share` of the labelled pixels, and its label image (h, w).

    This is cat_max_ratio of mmsegmentation's RandomCrop: the place is drawn again up to `redraws` times, and
    the last one is taken whatever it holds. `labels` (H, W) are class ids of the complete image, `void` for
    pixels without one, which do not count; neither does padding. A `max_share` of 1 takes the first place.
    """
    height, width = labels.shape
    for attempt in range(redraws + 1 if max_share < 1 else 1):
        geometry = transform.geometry(height, width, key, attempt)
        crop = transform_labels(labels, geometry, void)
        counts = np.bincount(crop.ravel(), minlength=void + 1)
        counts[void] = 0
        if counts.max() < max_share * counts.sum():
            break
    return geometry, crop
