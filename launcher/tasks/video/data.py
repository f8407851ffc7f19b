"""Training and evaluation data of action recognition: clips of the member `video`, and the member `label`."""

from collections.abc import Mapping
from dataclasses import dataclass

from data_shards.format.fields import VIDEO_AND_LABEL, Members
from data_shards.format.rng import DrawKey
from data_shards.image.clip_crops import ClipCrops
from data_shards.stream.clips import EvalClips, TrainClips
from data_shards.stream.collate import Collator
from data_shards.stream.transform import Example
from data_shards.video.clips import ClipSampling
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import random_crop
from launcher.tasks.spec import DataSpec
from launcher.tasks.video.options import VideoOptions


def train_data(config: RunConfig) -> DataSpec:
    """One random clip a video, cut and mirrored at random, all frames alike."""
    options = options_of(config, VideoOptions)
    sampling = ClipSampling(
        frames=config.model.frames, interval=options.interval, mode=options.sampling, fps=options.fps
    )
    clips = TrainClips(sampling=sampling, geometry=random_crop(config), reader=options.reader)
    return DataSpec(transform=clips, members=VIDEO_AND_LABEL[:2])


def eval_clips(config: RunConfig) -> EvalClips:
    """All views of each video."""
    options = options_of(config, VideoOptions)
    sampling = ClipSampling(
        frames=config.model.frames,
        interval=options.interval,
        clips=options.clips,
        mode="segments" if options.sampling == "segments" else "uniform",
        fps=options.fps,
    )
    ratio = options.eval_crop or (1.0 if options.crops > 1 else config.data.eval_crop)
    crops = ClipCrops(image_size=config.model.image_sides, crops=options.crops, crop_ratio=ratio)
    return EvalClips(sampling=sampling, crops=crops, reader=options.reader)


def eval_data(config: RunConfig) -> DataSpec:
    """All views of each video, with labels."""
    return DataSpec(transform=eval_clips(config), members=VIDEO_AND_LABEL[:2])


@dataclass(frozen=True)
class UnlabelledClips:
    """What `EvalClips` makes of a video without a label: clip (V, D, 3, h, w) uint8."""

    clips: EvalClips

    @property
    def fields(self) -> tuple[str, ...]:
        """The video."""
        return ("video",)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """That of the clips."""
        return {"clip": self.clips.collators["clip"]}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """Every view; no draw is made."""
        return {"clip": self.clips({**members, self.clips.label: 0}, key)["clip"]}


def predict_data(config: RunConfig) -> DataSpec:
    """All views of each video, without labels."""
    return DataSpec(transform=UnlabelledClips(eval_clips(config)), members=VIDEO_AND_LABEL[:1])
