"""Object detection and instance segmentation. The parts are imported when they are called."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.dense_rules import (
    norm_group_errors,
    norm_layout_errors,
    part_class_errors,
    unread_options,
)
from launcher.tasks.detection.options import DetectionOptions
from launcher.tasks.parameter_rules import ParameterRules
from launcher.tasks.spec import Planning, Predicting, TaskSpec
from parallel.lazy_exports import deferred
from swin_moe.detection.config import check_model
from swin_moe.errors import ModelError

HERE = "launcher.tasks.detection"
NORM_GROUP = "detection.head.norm_group_images"
NOT_READ = {  # options of data.* that stand for another geometry, and what takes their place
    "augment": "detection.short_sides",
    "crop_scale": "detection.crop_sides",
    "crop_ratio": "detection.crop_sides",
    "eval_crop": "detection.eval_short_side",
}
TRAINING = (
    "head.rpn_samples",
    "head.pre_nms_train",
    "head.proposal_nms_threshold",
    "head.train_proposals",
    "head.roi_samples",
    "head.norm_group_images",
    "head.norm_frozen",
    "short_sides",
    "long_side",
    "crop_probability",
    "crop_short_sides",
    "crop_sides",
    "canvases",
    "canvas_multiple",
)
FREE = (
    "head.pre_nms_test",
    "head.test_proposals",
    "head.score_threshold",
    "head.nms_threshold",
    "head.detections",
    "eval_short_side",
    "pictures",
    "picture_score",
    "evaluator",
)


def _check(config: RunConfig) -> Sequence[str]:
    return [
        *unread_options(config, NOT_READ, "objects"),
        *_batch_errors(config),
        *_norm_errors(config),
        *_model_errors(config),
        *_evaluator_errors(config),
    ]


def _batch_errors(config: RunConfig) -> Iterator[str]:
    """Images on different canvases share no batch and no routing group."""
    train, moe, options = config.train, config.model.moe, options_of(config, DetectionOptions)
    if len(options.canvases) == 1:
        return
    side = options.long_side
    for name in ("micro_batch_size", "eval_batch_size"):
        if (size := getattr(train, name)) != 1:
            yield (
                f"train.{name} ({size}) must be 1 where images have canvases of several sizes: set it to 1, "
                f"or one canvas for all, such as detection.canvases=[[{side},{side}]]"
            )
    if moe is not None and moe.routing_group_images != 1:
        yield (
            f"model.moe.routing_group_images ({moe.routing_group_images}) must be 1 where images have "
            "canvases of several sizes"
        )
    if moe is not None and config.parallel.expert_exchange.padded:
        yield (
            "parallel.expert_exchange.padded needs images of one size on all ranks: set it to false, or one "
            f"canvas for all, such as detection.canvases=[[{side},{side}]]"
        )


def _norm_errors(config: RunConfig) -> Iterator[str]:
    if group := _norm_group(config):
        yield from norm_group_errors(config, NORM_GROUP, group)


def _check_layout(config: RunConfig, world_size: int) -> Sequence[str]:
    group = _norm_group(config)
    return norm_layout_errors(config, world_size, NORM_GROUP, group) if group else []


def _norm_group(config: RunConfig) -> int:
    """The images of a group of batch norms, whose statistics are of these; 0 of a model without any."""
    head = options_of(config, DetectionOptions).head
    return head.norm_group_images if head.is_cascade and not head.norm_frozen else 0


def _model_errors(config: RunConfig) -> Iterator[str]:
    """The pyramid must have its maps."""
    try:
        check_model(config.model)
    except ModelError as error:
        yield str(error)


def _evaluator_errors(config: RunConfig) -> Iterator[str]:
    """An evaluation that cannot compute its figures is refused before training."""
    name = options_of(config, DetectionOptions).evaluator
    if find_spec(name) is None:
        yield f"detection.evaluator ({name}): its package is not installed; pip install 'swin-moe[coco]'"


SPEC = TaskSpec(
    name="detection",
    options=DetectionOptions,
    build=deferred(f"{HERE}.task:DetectionTask"),
    model_on_meta=deferred(f"{HERE}.shapes:model_on_meta"),
    backbone=deferred("launcher.tasks.encoder:encoder_of"),
    pretrained=deferred("launcher.tasks.encoder:with_heads"),
    train_data=deferred(f"{HERE}.data:train_data"),
    eval_data=deferred(f"{HERE}.data:eval_data"),
    has_parts=True,
    takes_lr_net=True,
    check=_check,
    check_layout=_check_layout,
    check_data=part_class_errors,
    counted=deferred(f"{HERE}.cost:counted"),
    on_change={**dict.fromkeys(TRAINING, "training"), **dict.fromkeys(FREE, "free")},
    planning=Planning(
        members=deferred(f"{HERE}.shapes:members"),
        inputs=deferred(f"{HERE}.shapes:inputs"),
        step=deferred(f"{HERE}.shapes:step"),
        heads=deferred(f"{HERE}.shapes:heads"),
    ),
    predicting=Predicting(
        data=deferred(f"{HERE}.data:predict_data"),
        columns=deferred(f"{HERE}.answers:columns"),
        answers=deferred(f"{HERE}.answers:answers"),
        pictures=deferred(f"{HERE}.answers:pictures"),
        has_scores=True,
        one_by_one=True,
    ),
    parameters=ParameterRules(backbone="encoder.", heads=("stage_norms.", "neck.", "rpn_head.", "roi_head.")),
)
