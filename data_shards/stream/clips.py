"""What a video becomes: clips of its frames, all of a clip cut, resized and mirrored alike.

Both transforms read the member `video` and a label. Which frames a clip has is decided from the packets of
the video, and only these frames are decoded (data_shards/video/decode.py).

Legend: V views of a video, D frames of a clip, h, w height and width of its frames in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.format.rng import ANY_KEY, DrawKey
from data_shards.image.clip_crops import ClipCrops
from data_shards.image.decode import transform_frames
from data_shards.image.geometry import ImageTransform
from data_shards.stream.collate import Collator, Fixed
from data_shards.stream.transform import Example, file_of, number_of
from data_shards.video.clips import ClipSampling
from data_shards.video.readers import READERS, find_reader


@dataclass(frozen=True, kw_only=True)
class TrainClips:
    """Training: clip (D, 3, h, w) uint8, one a video, and label. Channels are last in memory.

    The geometry is drawn once and holds for every frame: `TrainTransform` of data_shards/image/geometry.py.
    `label` names the member that is the label. `reader` decodes: see data_shards/video/readers.py.
    """

    sampling: ClipSampling
    geometry: ImageTransform
    label: str = "label"
    reader: str = "pyav"

    def __post_init__(self) -> None:
        find_reader(self.reader)
        if self.sampling.clips != 1:
            raise DataError(f"clips ({self.sampling.clips}) must be 1 in training: one clip a video")

    @property
    def fields(self) -> tuple[str, ...]:
        """The video and its label."""
        return ("video", self.label)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """One size for all."""
        return _collators((self.sampling.frames,), self.geometry.sides)

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """A random clip, cut at random."""
        (frames,) = _decoded(members, self.sampling, self.reader, key)
        _, height, width, _ = frames.shape
        clip = transform_frames(frames, self.geometry.geometry(height, width, key))
        return {"clip": clip, "label": number_of(members, self.label)}


@dataclass(frozen=True, kw_only=True)
class EvalClips:
    """Evaluation: clip (V, D, 3, h, w) uint8, all views of a video, and label; no draw is made.

    V = clips x crops, and view c x crops + k is crop k of clip c. Channels are last in memory. `label` and
    `reader` are those of `TrainClips`.
    """

    sampling: ClipSampling
    crops: ClipCrops
    label: str = "label"
    reader: str = "pyav"

    def __post_init__(self) -> None:
        find_reader(self.reader)

    @property
    def views(self) -> int:
        """V, of a video."""
        return self.sampling.clips * self.crops.crops

    @property
    def fields(self) -> tuple[str, ...]:
        """The video and its label."""
        return ("video", self.label)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """One size for all."""
        return _collators((self.views, self.sampling.frames), self.crops.sides)

    def __call__(self, members: Members, key: DrawKey = ANY_KEY) -> Example:
        """Every view: the frames are decoded once, and resized once."""
        clips = _decoded(members, self.sampling, self.reader, None)
        views = [view for frames in clips for view in self.crops.views(frames)]
        memory = np.stack([view.transpose(0, 2, 3, 1) for view in views])  # (V, D, h, w, 3)
        return {"clip": memory.transpose(0, 1, 4, 2, 3), "label": number_of(members, self.label)}


def _collators(leading: tuple[int, ...], sides: tuple[int, int]) -> dict[str, Collator]:
    return {
        "clip": Fixed((*leading, 3, *sides), np.uint8, channels_last=True),
        "label": Fixed((), np.int64),
    }


def _decoded(members: Members, sampling: ClipSampling, reader: str, key: DrawKey | None) -> list[np.ndarray]:
    """The frames (D, H, W, 3) uint8 of each clip; a frame that several of them have is decoded once."""
    with READERS[reader](file_of(members, "video")) as video:
        clips = sampling.indices(len(video), video.rate, key)
        needed, where = np.unique(clips, return_inverse=True)
        pixels = video.read(needed)
    return [pixels[rows] for rows in where.reshape(clips.shape)]
