"""Tasks by what a configuration says."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, cast

from launcher.config.load import ConfigError
from launcher.config.task_specs import TaskError, find_spec
from launcher.tasks.spec import TaskSpec

if TYPE_CHECKING:  # they import torch
    from torch import nn

    from launcher.config.schema import RunConfig
    from launcher.tasks.spec import Planning, Task, TaskContext
    from parallel.experts.placement import ExpertParallel


def task_spec(task: str) -> TaskSpec:
    """The spec of a task: a name, or the dotted path of a spec.

    Raises:
        TaskError: there is none, or it lacks something that a spec needs.
    """
    spec = find_spec(task)
    missing = [option.name for option in fields(TaskSpec) if not hasattr(spec, option.name)]
    if missing:
        raise TaskError(f"task: {task} is no TaskSpec, it has no {', '.join(missing)}; see docs/extending.md")
    return cast(TaskSpec, spec)


def build_task(config: RunConfig, context: TaskContext) -> Task:
    """The task that a configuration names, on this rank."""
    return task_spec(config.task).build(config, context)


def model_on_meta(config: RunConfig, placement: ExpertParallel | None = None) -> nn.Module:
    """The model that a run trains, of shapes alone; without a placement, with all experts on one rank."""
    return task_spec(config.task).model_on_meta(config, placement)


def start_on_meta(config: RunConfig) -> nn.Module:
    """The part of `model_on_meta` that pretrained weights are loaded into."""
    return task_spec(config.task).start_of(model_on_meta(config))


def initialized_start(model: nn.Module, config: RunConfig) -> nn.Module:
    """A model of `start_on_meta` on the CPU, with the initial weights of a run."""
    from swin_moe.backbone.initialize import initialize

    model = model.to_empty(device="cpu")
    for module in model.modules():
        if reset := getattr(module, "reset_buffers", None):
            reset()
    swin = config.model
    initialize(model, seed=config.seed, std=swin.init_std, zero_branch_norms=swin.norm == "post")
    return model


def planning_of(config: RunConfig) -> Planning:
    """What the planner asks of a run's task.

    Raises:
        ConfigError: the task does not say.
    """
    planning = task_spec(config.task).planning
    if planning is None:
        raise ConfigError(f"the planner cannot plan task={config.task}: its TaskSpec has no `planning`")
    return planning
