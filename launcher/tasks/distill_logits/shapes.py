"""What the planner needs, and the rules that need the teacher's files."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from data_shards.format.classes import differences, is_numbered
from data_shards.format.index import Manifest
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.distill_logits import task
from launcher.tasks.distill_logits.options import LogitOptions
from launcher.tasks.frozen_teacher import check_weights, fitted_on_meta, source_errors, teacher_source
from launcher.tasks.spec import StepOutput
from parallel.experts.placement import ExpertParallel
from swin_moe.teachers.source import TeacherSource


def teacher_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The teacher, with all its experts on each rank."""
    return fitted_on_meta(config, _source(config))


def step(config: RunConfig, model: nn.Module, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
    """The losses against logits without values."""
    return task.step(config, model, inputs, keys, torch.empty(len(keys), config.model.num_classes))


def check_files(config: RunConfig) -> Sequence[str]:
    """The teacher must be there, fit its model, and know as many classes as the student."""
    return source_errors(lambda: _checked(config))


def _checked(config: RunConfig) -> None:
    source, outputs = _source(config), config.model.num_classes
    if source.spec.classes != outputs:
        raise ConfigError(
            f"model.num_classes ({outputs}) must be the classes of the teacher ({source.spec.classes}, "
            f"{_weights(config)})"
        )
    check_weights(config, source)


def check_data(config: RunConfig, manifests: Mapping[str, Manifest]) -> Sequence[str]:
    """Class i of the teacher must be class i of the data, by name, where both have names."""
    found = {option: one.classes for option, one in manifests.items() if option in config.data.train_places}
    try:
        wanted = _source(config).spec.class_names
    except ConfigError:
        return []  # check_files says why
    if wanted is None or is_numbered(wanted) or len(wanted) != config.model.num_classes:
        return []  # nobody knows the names, or another rule says so
    return [
        f"the classes of {option} must be those of the teacher ({_weights(config)}): "
        f"{differences(classes, wanted)}; take a teacher of these classes, or pack the data with its names"
        for option, classes in found.items()
        if classes and not is_numbered(classes) and tuple(classes) != wanted
    ]


def _weights(config: RunConfig) -> str:
    return f"{config.task}.teacher.weights: {options_of(config, LogitOptions).teacher.weights}"


def _source(config: RunConfig) -> TeacherSource:
    return teacher_source(config, options_of(config, LogitOptions).teacher, "logits")
