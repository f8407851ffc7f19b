"""Image classification."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.tasks.image_data import (
    eval_labelled_images,
    image_inputs,
    image_members,
    train_labelled_images,
)
from launcher.tasks.spec import Planning, StepOutput, Task, TaskContext, TaskSpec
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.model import SwinTransformer


def _build(config: RunConfig, context: TaskContext) -> Task:
    from launcher.tasks.classification.task import ClassificationTask

    return ClassificationTask(config, context)


def _model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> SwinTransformer:
    return construct_on_meta(SwinTransformer, config.model, placement)


def _backbone(model: nn.Module) -> SwinTransformer:
    """The whole classifier."""
    assert isinstance(model, SwinTransformer)
    return model


def _members(config: RunConfig, images: int) -> dict[str, Tensor]:
    return image_members(config, images) | {"label": torch.empty(images, dtype=torch.int64)}


def _inputs(config: RunConfig, members: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mixed images have probabilities for targets."""
    images, labels = image_inputs(config, members), members["label"]
    if config.data.augment is None:
        return images, labels
    return images, torch.empty(len(labels), config.model.num_classes)


def _step(config: RunConfig, model: nn.Module, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
    from launcher.tasks.classification.task import step

    return step(config, model, inputs, keys)


def _check(config: RunConfig) -> Sequence[str]:
    return list(_threshold_errors(config))


def _threshold_errors(config: RunConfig) -> Iterator[str]:
    """The threshold must separate the class of an image from the others, whose probability smoothing sets."""
    threshold = config.optim.bce_target_threshold
    if threshold is None:
        return
    smoothing, classes = config.optim.label_smoothing, config.model.num_classes
    low = smoothing / classes
    high = 1 - smoothing + low
    if not low <= threshold < high:
        yield (
            f"optim.bce_target_threshold ({threshold}) must lie in [{low:.4g}, {high:.4g}): with "
            f"optim.label_smoothing ({smoothing}) and model.num_classes ({classes}) the class of an image "
            f"has the probability {high:.4g}, and each other class {low:.4g}"
        )


SPEC = TaskSpec(
    name="classification",
    check=_check,
    build=_build,
    model_on_meta=_model_on_meta,
    backbone=_backbone,
    train_data=train_labelled_images,
    eval_data=eval_labelled_images,
    planning=Planning(members=_members, inputs=_inputs, step=_step),
    has_classes=True,
)
