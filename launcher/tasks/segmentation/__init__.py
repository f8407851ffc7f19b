"""Semantic segmentation: UPerNet on any backbone. Its parts are imported when they are called."""

from collections.abc import Iterator, Sequence

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.dense_rules import (
    norm_group_errors,
    norm_layout_errors,
    part_class_errors,
    unread_options,
)
from launcher.tasks.parameter_rules import ParameterRules
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.tasks.spec import Planning, Predicting, TaskSpec
from parallel.lazy_exports import deferred
from swin_moe.errors import ModelError
from swin_moe.heads.upernet_config import check_model

HERE = "launcher.tasks.segmentation"
NORM_GROUP = "segmentation.head.norm_group_images"
NOT_READ = {  # options of data.* that stand for another geometry, and what takes their place
    "augment": "segmentation.photometric",
    "crop_scale": "segmentation.ratio_range",
    "crop_ratio": "segmentation.ratio_range",
    "eval_crop": "segmentation.eval_fit",
}
TRAINING = (
    "head.dropout",
    "head.norm_group_images",
    "head.norm_frozen",
    "auxiliary_weight",
    "loss_over",
    "long_side",
    "short_side",
    "ratio_range",
    "max_class_share",
    "photometric",
    "antialias",
)
FREE = (
    "eval_fit",
    "eval_mode",
    "eval_crop",
    "eval_stride",
    "eval_windows",
    "eval_ratios",
    "eval_flip",
    "eval_band",
    "pictures",
)


def _check(config: RunConfig) -> Sequence[str]:
    return [
        *unread_options(config, NOT_READ, "pixels"),
        *_batch_errors(config),
        *_model_errors(config),
        *_window_errors(config),
    ]


def _batch_errors(config: RunConfig) -> Iterator[str]:
    """Images of their own size share no batch and no routing group; groups of batch norms fill batches."""
    train, moe = config.train, config.model.moe
    if train.eval_batch_size != 1:
        yield (
            f"train.eval_batch_size ({train.eval_batch_size}) must be 1 for task=segmentation: each image is "
            "evaluated at its own size"
        )
    if moe is not None and moe.routing_group_images != 1:
        yield (
            f"model.moe.routing_group_images ({moe.routing_group_images}) must be 1 for task=segmentation: "
            "images are evaluated one by one, each at its own size"
        )
    if moe is not None and moe.eval_capacity_factor and config.parallel.expert_exchange.padded:
        yield (
            "parallel.expert_exchange.padded needs images of one size on all ranks: with task=segmentation "
            f"set it to false, or model.moe.eval_capacity_factor ({moe.eval_capacity_factor}) to 0"
        )
    head = options_of(config, SegmentationOptions).head
    if not head.norm_frozen:
        yield from norm_group_errors(config, NORM_GROUP, head.norm_group_images)


def _check_layout(config: RunConfig, world_size: int) -> Sequence[str]:
    head = options_of(config, SegmentationOptions).head
    return (
        [] if head.norm_frozen else norm_layout_errors(config, world_size, NORM_GROUP, head.norm_group_images)
    )


def _model_errors(config: RunConfig) -> Iterator[str]:
    """The heads must have their maps, and labels their bits."""
    try:
        check_model(config.model, options_of(config, SegmentationOptions).head)
    except ModelError as error:
        yield str(error)


def _window_errors(config: RunConfig) -> Iterator[str]:
    """Windows must cover the image."""
    options = options_of(config, SegmentationOptions)
    crop = options.eval_crop or min(config.model.image_sides)
    if options.eval_stride is not None and options.eval_stride > crop:
        yield (
            f"segmentation.eval_stride ({options.eval_stride}) must be at most the side of a window "
            f"({crop}), or pixels between two windows would have no class"
        )


SPEC = TaskSpec(
    name="segmentation",
    options=SegmentationOptions,
    build=deferred(f"{HERE}.task:SegmentationTask"),
    model_on_meta=deferred(f"{HERE}.shapes:model_on_meta"),
    backbone=deferred("launcher.tasks.encoder:encoder_of"),
    pretrained=deferred("launcher.tasks.encoder:with_heads"),
    train_data=deferred(f"{HERE}.data:train_data"),
    eval_data=deferred(f"{HERE}.data:eval_data"),
    check=_check,
    check_layout=_check_layout,
    check_data=part_class_errors,
    counted=deferred(f"{HERE}.cost:counted"),
    has_parts=True,
    takes_lr_net=True,
    on_change={**dict.fromkeys(TRAINING, "training"), **dict.fromkeys(FREE, "free")},
    planning=Planning(
        members=deferred(f"{HERE}.shapes:members"),
        inputs=deferred(f"{HERE}.shapes:inputs"),
        step=deferred(f"{HERE}.shapes:step"),
        heads=deferred(f"{HERE}.shapes:heads"),
    ),
    predicting=Predicting(
        data=deferred(f"{HERE}.answers:data"),
        columns=deferred(f"{HERE}.answers:columns"),
        answers=deferred(f"{HERE}.answers:answers"),
        pictures=deferred(f"{HERE}.answers:pictures"),
        class_maps=deferred(f"{HERE}.answers:class_maps"),
        one_by_one=True,
    ),
    parameters=ParameterRules(backbone="encoder.", heads=("stage_norms.", "decode_head.", "auxiliary_head.")),
)
