"""Tasks by their name in the configuration."""

import torch
from torch import nn

from launcher.config.schema import RunConfig
from launcher.tasks.base import Task
from launcher.tasks.classification.task import ClassificationTask
from launcher.tasks.simmim.task import SimMIMTask
from swin_moe.backbone.model import SwinTransformer

TASKS: dict[str, type[Task]] = {"classification": ClassificationTask, "simmim": SimMIMTask}


def build_task(config: RunConfig, device: torch.device) -> Task:
    """The task that a configuration names."""
    return TASKS[config.task](config, device)


def model_on_meta(config: RunConfig) -> nn.Module:
    """The model of a run on the meta device, with all experts on one rank."""
    return TASKS[config.task].on_meta(config)


def backbone_on_meta(config: RunConfig) -> SwinTransformer:
    """The part of `model_on_meta` that pretrained weights are loaded into."""
    return TASKS[config.task].backbone(model_on_meta(config))
