"""A task and its data: own members, two views, ragged points, a teacher, own state and a gathered metric.

Nothing of the product names it. `task: tests.toy_task:SPEC` finds it, or `register(SPEC)` and `task: toy`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import image_inputs
from launcher.tasks.param_groups import ParameterRules
from launcher.tasks.spec import (
    HeadPart,
    PlannedTeacher,
    Planning,
    Predicting,
    StepOutput,
    Task,
    TaskContext,
    TaskSpec,
)
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.flops import construct_on_meta
from tests.toy_task import answers
from tests.toy_task.data import eval_data, image_data, train_data
from tests.toy_task.options import ToyOptions


def _build(config: RunConfig, context: TaskContext) -> Task:
    from tests.toy_task.task import ToyTask

    return ToyTask(config, context)


def _model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    from tests.toy_task.model import Toy

    width = options_of(config, ToyOptions).width
    return construct_on_meta(lambda model, experts: Toy(model, width, experts), config.model, placement)


def _backbone(model: nn.Module) -> Backbone:
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Backbone)
    return encoder


def _members(config: RunConfig, samples: int) -> dict[str, Tensor]:
    """Two views of each sample, and two points in the mean."""
    views = torch.empty(samples, 2, 3, *config.model.image_sides, dtype=torch.uint8)
    offsets = torch.empty(samples + 1, dtype=torch.int64)
    return {"views": views, "points": torch.empty(2 * samples, 2), "points_offsets": offsets}


def _inputs(config: RunConfig, members: dict[str, Tensor]) -> Any:
    from tests.toy_task.task import ToyInputs

    images = image_inputs(config, {"image": members["views"].flatten(0, 1)})
    sample = torch.empty(len(members["points"]), dtype=torch.int64)
    return ToyInputs(images, members["points"], sample)


def _step(config: RunConfig, model: nn.Module, inputs: Any, keys: Tensor) -> StepOutput:
    from tests.toy_task.task import student_step

    count, width = len(keys), options_of(config, ToyOptions).width
    return student_step(config, model, inputs, keys, torch.empty(2 * count, width))


def _heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    width = options_of(config, ToyOptions).width
    layers = nn.Sequential(nn.Linear(swin.channels[-1], width), nn.Linear(width, width))

    def run(maps: list[Tensor]) -> Tensor:
        predicted: Tensor = layers(swin.norm(maps[-1]).mean(dim=(1, 2)))
        return predicted

    return [HeadPart("projector", nn.ModuleList([swin.norm, layers]), run)]


def _check(config: RunConfig) -> Sequence[str]:
    moe, micro = config.model.moe, config.train.micro_batch_size
    if moe is not None and micro % moe.routing_group_images:
        groups = moe.routing_group_images
        return [f"model.moe.routing_group_images ({groups}) must divide train.micro_batch_size ({micro})"]
    return []


SPEC = TaskSpec(
    name="toy",
    options=ToyOptions,
    build=_build,
    model_on_meta=_model_on_meta,
    backbone=_backbone,
    train_data=train_data,
    eval_data=eval_data,
    check=_check,
    planning=Planning(
        members=_members,
        inputs=_inputs,
        step=_step,
        heads=_heads,
        views=2,
        teacher=PlannedTeacher(_model_on_meta, views=2),
    ),
    predicting=Predicting(
        data=image_data, columns=answers.columns, answers=answers.answers, pictures=answers.pictures
    ),
    on_change={"momentum": "training"},
    parameters=ParameterRules(backbone="encoder.", heads=("projector.", "predictor.", "points.")),
)
