"""The options of action recognition: the section `video` of a run. No torch."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges

Sampling = Literal["random", "segments"]


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Which frames and which part of them are a clip, in training and in evaluation.

    A clip has `model.frames` frames of `model.image_size` pixels. `data.crop_scale`, `data.crop_ratio` and
    `data.flip_probability` are of its random crop, which all frames share; set the last one to 0 where left
    and right are different classes.
    """

    # random: frames `interval` apart from a random start, as published for Kinetics; segments: one frame of
    # each of model.frames equal parts of the video, as published for Something-Something
    sampling: Sampling = "random"
    interval: int = 2  # frames of the video from a frame of a clip to the next; segments has none
    # count as if every video had so many frames a second, the nearest ones taken; 0 takes each as it is
    fps: float = 0.0
    # clips of a video in an evaluation, spread evenly (segments has one). The probabilities of its clips x
    # crops views are averaged: 4 x 3 on Kinetics and 1 x 3 on Something-Something in published results
    clips: int = 1
    # of a clip in an evaluation: its centre; or 3 or 5 along the longer side, evenly from border to border
    crops: Literal[1, 3, 5] = 1
    # frames are scaled until they cover model.image_size / this before they are cropped; null: 1.0 with
    # several crops, as published, and data.eval_crop with one
    eval_crop: float | None = None
    # views of each video in one forward pass, which bounds the memory and changes no result; 0: all
    view_batch: int = 0
    # what decodes the frames, whose colours may differ by some levels; torchcodec is a package of its own
    reader: Literal["pyav", "torchcodec"] = "pyav"

    def __post_init__(self) -> None:
        check_ranges("video.", self, interval=(1, 1000), fps=(0, 1000), clips=(1, 1000), view_batch=(0, 3000))
        if self.eval_crop is not None and not 0.1 <= self.eval_crop <= 1:
            raise ValueError(f"video.eval_crop ({self.eval_crop}) must lie in [0.1, 1], or be null")
        if self.sampling == "segments":
            self._check_segments()

    def _check_segments(self) -> None:
        for name, wanted in {"clips": 1, "interval": type(self).interval}.items():
            if (value := getattr(self, name)) != wanted:
                raise ValueError(
                    f"video.{name} ({value}) means nothing for video.sampling=segments, whose clip is of the "
                    f"complete video: set it to {wanted}"
                )

    @property
    def views(self) -> int:
        """Views of a video in an evaluation."""
        return self.clips * self.crops
