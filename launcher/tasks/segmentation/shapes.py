"""The model of shapes alone, and the tensors without values that the planner needs.

Legend: B images of h x w pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import image_inputs, image_members
from launcher.tasks.segmentation import task
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.tasks.spec import HeadPart, StepOutput
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone, Features
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.group_batch_norm import in_one_group
from swin_moe.heads.stage_norms import StageNorms
from swin_moe.heads.upernet import FCNHead, Segmenter, UPerHead


def model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The backbone with its heads."""
    head = options_of(config, SegmentationOptions).head
    return construct_on_meta(lambda model, experts: Segmenter(model, head, experts), config.model, placement)


def members(config: RunConfig, images: int) -> dict[str, Tensor]:
    """Images, label images and valid sizes."""
    masks = torch.empty(images, *config.model.image_sides, dtype=torch.uint8)
    return image_members(config, images) | {"mask": masks, "size": torch.empty(images, 2, dtype=torch.int32)}


def inputs(config: RunConfig, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, h, w) and labels (B, h, w)."""
    return image_inputs(config, tensors), tensors["mask"]


def step(config: RunConfig, model: nn.Module, inputs: Any, keys: Tensor) -> StepOutput:
    """The loss of a micro-batch; batch norms take what one rank holds for a group."""
    in_one_group(model, len(keys))
    return task.step(config, model, inputs, keys)


def heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    """The norms of the maps with the decode head, and the auxiliary head."""
    head, classes = options_of(config, SegmentationOptions).head, config.model.num_classes
    norms = StageNorms(swin.channels, range(len(swin.channels)))
    decode = UPerHead(swin.channels, classes, head)

    def normalized(maps: list[Tensor]) -> list[Tensor]:
        features = norms(Features(maps=maps, strides=swin.strides, moe={}))
        return [x.permute(0, 3, 1, 2) for x in features.maps]

    def run_decode(maps: list[Tensor]) -> Tensor:
        in_one_group(decode, len(maps[0]))
        logits: Tensor = decode(normalized(maps), torch.empty(len(maps[0]), dtype=torch.int64))
        return logits

    parts = [HeadPart("decode head", nn.ModuleList([norms, decode]), run_decode)]
    if head.auxiliary_channels:
        stage = head.auxiliary_stage
        auxiliary = FCNHead(swin.channels[stage], head.auxiliary_channels, classes, head)

        def run_auxiliary(maps: list[Tensor]) -> Tensor:
            in_one_group(auxiliary, len(maps[0]))
            x = maps[stage].permute(0, 3, 1, 2)
            logits: Tensor = auxiliary(x, torch.empty(len(x), dtype=torch.int64))
            return logits

        parts.append(HeadPart("auxiliary head", auxiliary, run_auxiliary))
    return parts
