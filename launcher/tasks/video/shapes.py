"""What the planner needs: tensors without values, and what it costs to decode a clip.

Legend: B clips of D frames of h x w pixels, K classes.
"""

import torch
from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.video.options import VideoOptions

# Milliseconds of a core for a clip of 32 frames, every second one, of a video of 256 x 320 pixels with a key
# frame at least every 32 frames (benchmarks/video_decode.py, docs/video.md): to decode it, and to cut it to
# 224 x 224. In the same unit the picture of `Hardware.img_s_core` (docs/performance.md, Data).
CLIP_FRAMES, CLIP_INTERVAL, CLIP_SIDE = 32, 2, 224
DECODE_MS, CROP_MS, PICTURE_MS = 1000 / 40.4, 1000 / 29.7 - 1000 / 40.4, 1.577


def decoding(config: RunConfig) -> float:
    """What a clip costs in pictures of `Hardware.img_s_core`: 21.4 for the clips of Kinetics.

    Decoding costs the frames of the video from the first to the last one of the clip, cropping costs the
    pixels of the clip. Segments of a video are taken for frames two apart, as its length is not known.
    """
    model, options = config.model, options_of(config, VideoOptions)
    interval = CLIP_INTERVAL if options.sampling == "segments" else options.interval
    height, width = model.image_sides
    span = model.frames * interval / (CLIP_FRAMES * CLIP_INTERVAL)
    pixels = model.frames * height * width / (CLIP_FRAMES * CLIP_SIDE**2)
    return (span * DECODE_MS + pixels * CROP_MS) / PICTURE_MS


def members(config: RunConfig, clips: int) -> dict[str, Tensor]:
    """Clips and labels."""
    model = config.model
    shape = (clips, model.frames, model.in_chans, *model.image_sides)
    return {"clip": torch.empty(shape, dtype=torch.uint8), "label": torch.empty(clips, dtype=torch.int64)}


def inputs(config: RunConfig, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Clips (B, 3, D, h, w) and targets; mixed clips have probabilities for targets."""
    mean, labels = torch.empty(1, config.model.in_chans, 1, 1), tensors["label"]
    images = (tensors["clip"].flatten(0, 1).float() - mean) / mean
    clips = images.unflatten(0, tensors["clip"].shape[:2]).transpose(1, 2).contiguous()
    augment = config.data.augment
    if augment is None or not augment.mixes:
        return clips, labels
    return clips, torch.empty(len(labels), config.model.num_classes)
