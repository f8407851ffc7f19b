"""The multi-scale training of detectors: a random size, and for half of the images a random crop before it.

It is the augmentation of "End-to-End Object Detection with Transformers" (Carion et al., ECCV 2020, section
4), which "Swin Transformer" (Liu et al., ICCV 2021, section 4.2) takes over for its detectors.

Legend: H, W height and width of the source image; h, w of the result; all in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, uniform
from data_shards.image.geometry import Crop, Geometry, check_flip_prob
from data_shards.image.resize_crop import check_bounds, fitted_size

FLIP, CROPPED, SHORT_SIDE, FIRST_SIDE, HEIGHT, WIDTH, TOP, LEFT = range(8)  # numbers of a sample's draws


@dataclass(frozen=True, kw_only=True)
class MultiScaleTransform:
    """Resize to a random short side; with `crop_prob`, to another one and to a random crop of it before that.

    Each of `short_sides`, and of `crop_short_sides` before a crop, is equally likely, and no long side gets
    longer than `long_side`: see `fitted_size`. The height and the width of a crop are uniform whole numbers
    from the first to the last of `crop_sides`, or the image's side where that is shorter; so is its place. A
    crop may have no object in it.
    DataError when a value is out of its range.
    """

    short_sides: Sequence[int] = range(480, 801, 32)
    long_side: int = 1333
    crop_prob: float = 0.5
    crop_short_sides: Sequence[int] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        check_flip_prob(self.flip_prob)
        if not 0 <= self.crop_prob <= 1:
            raise DataError(f"crop_prob ({self.crop_prob}) must be in 0 ... 1")
        for option in ("short_sides", "crop_short_sides"):
            sides = getattr(self, option)
            if not sides or min(sides) < 1:
                raise DataError(f"{option} ({list(sides)}) must be pixels, for example [480, 512, 800]")
            check_bounds(self.long_side, max(sides), 1.0)
        if not 1 <= self.crop_sides[0] <= self.crop_sides[1]:
            raise DataError(f"crop_sides {self.crop_sides} must be 1 <= low <= high, for example (384, 600)")

    def steps(self, height: int, width: int, key: DrawKey) -> tuple[Geometry, ...]:
        """The geometry of a view of a sample, in one step or in two: the second is of the first one's result.

        The image is mirrored by the last step. The original mirrors before the first, which gives the same.
        """
        draws = key.draws(Purpose.DETECTION)
        mirrored = uniform(draws, FLIP) < self.flip_prob
        if uniform(draws, CROPPED) >= self.crop_prob:
            return (self._resized(height, width, draws, mirrored),)
        resized = fitted_size(
            height, width, self.long_side, _one_of(self.crop_short_sides, draws, FIRST_SIDE)
        )
        h, w = (
            _between(self._limits(side), draws, axis)
            for side, axis in zip(resized, (HEIGHT, WIDTH), strict=True)
        )
        top, left = _between((0, resized[0] - h), draws, TOP), _between((0, resized[1] - w), draws, LEFT)
        crop = Geometry(Crop(0, 0, height, width), resized, Crop(top, left, h, w), in_full=True)
        return crop, self._resized(h, w, draws, mirrored)

    def _resized(self, height: int, width: int, draws: int, mirrored: bool) -> Geometry:
        """The complete image at a random size."""
        size = fitted_size(height, width, self.long_side, _one_of(self.short_sides, draws, SHORT_SIDE))
        return Geometry(Crop(0, 0, height, width), size, mirrored=mirrored, in_full=True)

    def _limits(self, side: int) -> tuple[int, int]:
        """The range of a crop along a side."""
        low, high = self.crop_sides
        return min(side, low), min(side, high)


def _one_of(values: Sequence[int], draws: int, number: int) -> int:
    return values[int(uniform(draws, number) * len(values))]


def _between(limits: tuple[int, int], draws: int, number: int) -> int:
    """A whole number of the range `limits`, both ends included."""
    return limits[0] + int(uniform(draws, number) * (limits[1] - limits[0] + 1))
