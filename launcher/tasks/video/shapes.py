"""The tensors without values that the planner needs.

Legend: B clips of D frames of h x w pixels, K classes.
"""

import torch
from torch import Tensor

from launcher.config.schema import RunConfig


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
