"""The models of shapes alone, what the planner needs of them, and the rules that need the teacher's files."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.distill import task
from launcher.tasks.distill.options import DistillOptions
from launcher.tasks.frozen_teacher import check_weights, fitted_on_meta, source_errors, teacher_source
from launcher.tasks.spec import HeadPart, StepOutput
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.errors import ModelError
from swin_moe.heads.distill import Distiller, TokenProjector
from swin_moe.heads.distill_config import has_normalised_map, student_stage, tokens_per_side
from swin_moe.teachers.source import TeacherSource


def model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The student with its projector."""
    options, spec = options_of(config, DistillOptions), _source(config).spec
    return construct_on_meta(
        lambda model, experts: Distiller(model, options, spec.width, spec.grid, experts),
        config.model,
        placement,
    )


def teacher_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The teacher, with all its experts on each rank."""
    return fitted_on_meta(config, _source(config))


def step(config: RunConfig, model: nn.Module, inputs: Tensor, keys: Tensor) -> StepOutput:
    """The loss against a map without values."""
    spec = _source(config).spec
    return task.step(model, inputs, keys, torch.empty(len(inputs), *spec.grid, spec.width))


def heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    """The projector of a stage's map."""
    options, spec = options_of(config, DistillOptions), _source(config).spec
    model, stage = config.model, student_stage(config.model, options)
    factor = tokens_per_side(model.stage_resolution(stage), spec.grid, options)
    normalised = has_normalised_map(model, options)
    norm = swin.norm if normalised else nn.Identity()
    projector = TokenProjector(model.stage_dim(stage), spec.width, factor, norm=not normalised)

    def run(maps: list[Tensor]) -> Tensor:
        predicted: Tensor = projector(norm(maps[stage]))
        return predicted

    return [HeadPart("projector", nn.ModuleList([norm, projector]), run)]


def check_files(config: RunConfig) -> Sequence[str]:
    """The teacher must be there, fit its model, and have a map that the student can be compared with."""
    return source_errors(lambda: _checked(config))


def _checked(config: RunConfig) -> None:
    options, source = options_of(config, DistillOptions), _source(config)
    stage = student_stage(config.model, options)
    try:
        tokens_per_side(config.model.stage_resolution(stage), source.spec.grid, options)
    except ModelError as error:
        raise type(error)(f"{error} (the teacher is {options.teacher.weights})") from error
    check_weights(config, source)


def _source(config: RunConfig) -> TeacherSource:
    return teacher_source(config, options_of(config, DistillOptions).teacher, "map")
