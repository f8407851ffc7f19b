"""The model of shapes alone, and the tensors without values that the planner needs."""

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.tasks.image_data import image_inputs, image_members
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.model import SwinTransformer


def model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> SwinTransformer:
    """The classifier."""
    return construct_on_meta(SwinTransformer, config.model, placement)


def backbone(model: nn.Module) -> SwinTransformer:
    """The whole classifier."""
    assert isinstance(model, SwinTransformer)
    return model


def members(config: RunConfig, images: int) -> dict[str, Tensor]:
    """Images and labels."""
    return image_members(config, images) | {"label": torch.empty(images, dtype=torch.int64)}


def inputs(config: RunConfig, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Images and targets; mixed images have probabilities for targets."""
    images, labels = image_inputs(config, tensors), tensors["label"]
    if config.data.augment is None:
        return images, labels
    return images, torch.empty(len(labels), config.model.num_classes)
