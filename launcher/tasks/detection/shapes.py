"""The model of shapes alone, and the tensors without values that the planner needs.

Which regions pass through the heads depends on values. The planner has none, so that it reads the features of
as many regions as there are from the finest map.

Legend: B images of h x w pixels, R regions of an image, C channels of the pyramid.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.detection.options import DetectionOptions
from launcher.tasks.detection.task import TrainInputs
from launcher.tasks.image_data import image_inputs, image_members
from launcher.tasks.spec import HeadPart, StepOutput
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone, Features
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.group_batch_norm import in_one_group
from swin_moe.detection import box_head, mask_head
from swin_moe.detection.config import DetectorConfig
from swin_moe.detection.detector import Detector
from swin_moe.detection.fpn import FPN
from swin_moe.detection.roi import roi_align
from swin_moe.detection.roi_head import RoIHead
from swin_moe.detection.rpn import RPNHead
from swin_moe.detection.targets import Targets
from swin_moe.heads.stage_norms import StageNorms

OBJECTS = 8  # of an image, about as many as one of COCO has


def model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The detector."""
    head = options_of(config, DetectionOptions).head
    return construct_on_meta(lambda model, experts: Detector(model, head, experts), config.model, placement)


def members(config: RunConfig, images: int) -> dict[str, Tensor]:
    """Images, their sizes and their objects."""
    count = images * OBJECTS
    return image_members(config, images) | {
        "image_size": torch.empty(images, 2, dtype=torch.int64),
        "boxes": torch.empty(count, 4),
        "labels": torch.empty(count, dtype=torch.int32),
        "mask_runs": torch.empty(count * config.model.image_sides[0], dtype=torch.int32),
    }


def inputs(config: RunConfig, tensors: dict[str, Tensor]) -> TrainInputs:
    """Images and their objects."""
    images = image_inputs(config, tensors)
    boxes, labels = (tensors[name].unflatten(0, (len(images), OBJECTS)) for name in ("boxes", "labels"))
    offsets = torch.empty(len(images), OBJECTS + 1, dtype=torch.int64)
    targets = Targets(boxes, labels.long(), tensors["mask_runs"], offsets)
    return TrainInputs(images, tensors["image_size"], targets)


def step(config: RunConfig, model: nn.Module, inputs: TrainInputs, keys: Tensor) -> StepOutput:
    """The loss of a micro-batch: a mean of all that the heads say."""
    assert isinstance(model, Detector)
    in_one_group(model, len(keys))
    features = model.stage_norms(model.encoder.forward_features(inputs.images, keys))
    maps = model.neck([x.permute(0, 3, 1, 2) for x in features.maps])
    said = [
        _rpn(model.rpn_head, maps),
        *(_boxes(head, maps, model.config) for head in model.roi_head.box_heads),
        *(_masks(head, maps, model.config) for head in model.roi_head.mask_heads),
    ]
    loss = torch.stack([one.mean() for one in said]).sum()
    return StepOutput(loss=loss, terms={"detection": loss}, moe=features.moe)


def heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    """The norms of the maps with the pyramid and the network of proposals, the box heads, the mask heads."""
    head = options_of(config, DetectionOptions).head
    norms = StageNorms(swin.channels, range(len(swin.channels)))
    neck, strides = FPN(swin.channels, head.channels), swin.strides
    rpn = RPNHead(head.channels, (*strides, 2 * strides[-1]), head.anchor_scale)
    regions = RoIHead(head, strides, config.model.num_classes)

    def pyramid(maps: list[Tensor]) -> list[Tensor]:
        features = norms(Features(maps=maps, strides=strides, moe={}))
        levels: list[Tensor] = neck([x.permute(0, 3, 1, 2) for x in features.maps])
        return levels

    def finest(maps: list[Tensor]) -> list[Tensor]:
        return [maps[0].new_empty(len(maps[0]), head.channels, *maps[0].shape[1:3], requires_grad=True)]

    def through(modules: Sequence[nn.Module], run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run_all(maps: list[Tensor]) -> Tensor:
            for module in modules:
                in_one_group(module, len(maps[0]))
            return torch.stack([run(module, finest(maps), head) for module in modules])

        return run_all

    boxes, masks = regions.box_heads, regions.mask_heads
    parts = [
        HeadPart(
            "pyramid and proposals", nn.ModuleList([norms, neck, rpn]), lambda maps: _rpn(rpn, pyramid(maps))
        ),
        HeadPart("box heads", nn.ModuleList(boxes), through(boxes, _boxes)),
    ]
    return [*parts, HeadPart("mask heads", nn.ModuleList(masks), through(masks, _masks))] if masks else parts


def _rpn(head: RPNHead, maps: Sequence[Tensor]) -> Tensor:
    output = head(maps)
    return torch.cat([*output.logits, *(deltas.flatten(1) for deltas in output.deltas)], dim=1)


def _boxes(head: nn.Module, maps: Sequence[Tensor], config: DetectorConfig) -> Tensor:
    logits, deltas = head(_region_features(maps, config.roi_samples, box_head.SIDE))
    return torch.cat([logits, deltas.flatten(1)], dim=1)


def _masks(head: nn.Module, maps: Sequence[Tensor], config: DetectorConfig) -> Tensor:
    masks: Tensor = head(_region_features(maps, config.roi_positives, mask_head.SIDE))
    return masks


def _region_features(maps: Sequence[Tensor], regions: int, side: int) -> Tensor:
    """The features (B * R, C, side, side) of regions of the finest map, in the type of the maps."""
    boxes = torch.empty(len(maps[0]) * regions, 5)
    return roi_align(maps[0], boxes, side).to(maps[0].dtype)
