"""The crops of a clip that an evaluation sees: one in the centre, or three or five along its long side.

Legend: D frames of a clip, H, W height and width of its frames; h, w of a crop; all in pixels.
"""

from dataclasses import dataclass

import numpy as np

from data_shards.errors import DataError
from data_shards.image.decode import transform_frames
from data_shards.image.formats import MAX_PIXELS
from data_shards.image.geometry import Crop, Geometry, ImageSize, covering, sides

CROPS = (1, 3, 5)


@dataclass(frozen=True, kw_only=True)
class ClipCrops:
    """Resize until the frames just cover h / crop_ratio x w / crop_ratio pixels, then cut `crops` of h x w.

    One crop is in the centre. Three are left, right and middle of a wide video, top, bottom and middle of a
    tall one, in this order, as mmaction2's ThreeCrop cuts them. Five are these and those halfway between two
    of them. With `crop_ratio` 1 the short side has the size of the crop; 0.875 resizes it to 256 for a crop
    of 224. DataError for a value out of range.
    """

    image_size: ImageSize
    crops: int = 1
    crop_ratio: float = 1.0

    def __post_init__(self) -> None:
        sides(self.image_size)
        if self.crops not in CROPS:
            raise DataError(f"crops ({self.crops}) must be 1, the centre, or 3 or 5, along the long side")
        if not 0 < self.crop_ratio <= 1:
            raise DataError(f"crop_ratio ({self.crop_ratio}) must be above 0 and at most 1")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a crop in pixels."""
        return sides(self.image_size)

    def geometries(self, height: int, width: int) -> tuple[Geometry, ...]:
        """The geometry of each crop of frames of H x W pixels; DataError when they would be too large."""
        resized = covering((height, width), self.sides, self.crop_ratio)
        if resized[0] * resized[1] > MAX_PIXELS:
            text = f"frames of {height} x {width} pixels need a resize to {resized[0]} x {resized[1]}"
            raise DataError(f"{text} pixels, of at most {MAX_PIXELS}")
        complete, (h, w) = Crop(0, 0, height, width), self.sides
        places = self._places(resized)
        return tuple(Geometry(complete, resized, Crop(top, left, h, w), in_full=True) for top, left in places)

    def _places(self, resized: tuple[int, int]) -> list[tuple[int, int]]:
        """Top and left of each crop."""
        top, left = ((whole - side) // 2 for whole, side in zip(resized, self.sides, strict=True))
        if self.crops == 1:
            return [(top, left)]
        middle = max(top, left)
        along = [0, 2 * middle, middle, middle // 2, 2 * middle - middle // 2][: self.crops]
        return [(top, at) for at in along] if left >= top else [(at, left) for at in along]

    def views(self, frames: np.ndarray) -> list[np.ndarray]:
        """The crops of frames (D, H, W, 3) uint8, which are resized once: (D, 3, h, w) uint8 each."""
        first, *others = geometries = self.geometries(frames.shape[1], frames.shape[2])
        if not others:
            return [transform_frames(frames, first)]
        resized = transform_frames(frames, first._replace(window=None))
        return [resized[(..., *one.window.slices)] for one in geometries if one.window]
