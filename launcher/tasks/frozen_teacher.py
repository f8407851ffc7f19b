"""The frozen teacher of a run: its source by the options, its weights on every rank, and its rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import DataConfig, RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.tasks.spec import TaskContext
from parallel.ranks.collectives import RanksError, agree
from parallel.suggest import suggestion
from swin_moe.config import ModelConfig
from swin_moe.options import option_names, with_full_names
from swin_moe.teachers.fitted import FittedTeacher
from swin_moe.teachers.folder import FolderSource, is_folder
from swin_moe.teachers.options import TeacherConfig
from swin_moe.teachers.source import TeacherSource, TeacherSourceError, Wanted
from swin_moe.teachers.swin import SwinSource
from swin_moe.weights.input_spec import InputSpec, input_spec_of
from swin_moe.weights.load import read
from swin_moe.weights.native import config_of

if TYPE_CHECKING:
    from parallel.zero.teacher import FrozenTeacher


def teacher_source(config: RunConfig, options: TeacherConfig, wanted: Wanted) -> TeacherSource:
    """The teacher that a run names, by its small files; no weights are read.

    Args:
        config: of the run.
        options: of its teacher.
        wanted: its map or its logits.

    Raises:
        ConfigError: there is no such teacher, or it does not say which model it is.
    """
    option = _option(config)
    if options.weights is None:
        raise ConfigError(
            f"{option} (null) must name the teacher: a run, a checkpoint, a file of weights, or a folder of "
            "transformers"
        )
    path = Path(options.weights)
    try:
        wrong = _place_error(path, RunDirectory(config.run_dir))
        if wrong is None:
            is_of_transformers = options.model is None and is_folder(path)
            return (_folder if is_of_transformers else _swin)(options, path, wanted)
    except (ValueError, OSError) as error:
        raise _unusable(config, error) from error
    raise ConfigError(f"{option} ({path}) {wrong}")


def build_teacher(config: RunConfig, context: TaskContext, source: TeacherSource, name: str) -> FrozenTeacher:
    """The teacher of a run on this rank, complete on each; every rank calls it together.

    Args:
        config: of the run.
        context: of the task.
        source: of the teacher.
        name: of its weights.

    Raises:
        ConfigError: its weights cannot be read or do not fit, on all ranks alike.
    """
    from parallel.zero.teacher import FrozenTeacher  # DeepSpeed, which checks do not import

    loaded: list[torch.nn.Module] = []
    try:
        agree(lambda: loaded.append(source.load()), (ValueError, OSError))
    except RanksError as error:
        raise _unusable(config, error) from error
    data = config.data
    module = FittedTeacher(loaded.pop(), source.spec, data.mean, data.std).to(context.device)
    option = f"{_option(config)} ({name})"
    return FrozenTeacher(module, config.train.precision, context.mesh, name=option)


def _option(config: RunConfig) -> str:
    return f"{config.task}.teacher.weights"


def _unusable(config: RunConfig, error: Exception) -> ConfigError:
    """The error of a teacher, which names its options by `teacher.` alone, for the options of this task."""
    section = f"{config.task}.teacher"
    options = option_names(TeacherConfig, f"{section}.")
    return ConfigError(f"{_option(config)}: {with_full_names(str(error), section, options)}")


def _place_error(path: Path, run: RunDirectory) -> str | None:
    """Why there is no teacher at a path, or one that the run itself would change."""
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, beside, "give the path of a run, of weights or of a folder", most=3)
        return f"does not exist; {hint}"
    own = run.path.resolve()
    if path.resolve() == own or path.resolve().is_relative_to(run.checkpoints.resolve()):
        return f"is this run itself (run_dir {own}): give the weights of another one, or set another run_dir"
    return None


def _folder(options: TeacherConfig, path: Path, wanted: Wanted) -> FolderSource:
    if options.ema:
        raise TeacherSourceError(f"{path}: teacher.ema (True) is for weights of ours: set it to false")
    return FolderSource(
        path=path, wanted=wanted, image_size=options.image_size, mean=options.mean, std=options.std
    )


def _swin(options: TeacherConfig, path: Path, wanted: Wanted) -> SwinSource:
    recipe = load_config(options.model) if options.model is not None else None
    model = recipe.model if recipe else config_of(path)
    if model is None:
        read(path)  # what holds no weights, or is damaged, is of no model
        raise TeacherSourceError(
            f"{path} does not say which model it is of: set teacher.model to the recipe of its model"
        )
    return SwinSource(
        path=path,
        config=_of_size(model, options),
        wanted=wanted,
        inputs=_inputs(options, path, recipe.data if recipe else None),
        ema=options.ema,
    )


def _of_size(model: ModelConfig, options: TeacherConfig) -> ModelConfig:
    return model if options.image_size is None else replace(model, image_size=options.image_size)


def _inputs(options: TeacherConfig, path: Path, recipe: DataConfig | None) -> InputSpec:
    """The normalization of the teacher's images: of the options, of the weights, or of the recipe."""
    found = input_spec_of(path)
    if found is None and recipe is not None:
        found = InputSpec(mean=recipe.mean, std=recipe.std, eval_crop=recipe.eval_crop)
    if options.mean is not None and options.std is not None:
        found = found or InputSpec(mean=options.mean, std=options.std, eval_crop=1.0)
        return replace(found, mean=options.mean, std=options.std)
    if found is None:
        raise TeacherSourceError(
            f"{path} does not say how its images are normalised: set teacher.mean and teacher.std"
        )
    return found


def check_weights(config: RunConfig, source: TeacherSource) -> None:
    """Find out that the weights of a teacher are there and fit.

    Raises:
        ConfigError: they are not, or do not.
    """
    try:
        source.check()
    except (ValueError, OSError) as error:
        raise _unusable(config, error) from error


def fitted_on_meta(config: RunConfig, source: TeacherSource) -> torch.nn.Module:
    """What `build_teacher` makes of a source, of shapes alone."""
    data = config.data
    return FittedTeacher(source.on_meta(), source.spec, data.mean, data.std).to("meta")


def source_errors(check: Callable[[], None]) -> list[str]:
    """What a check of a teacher finds wrong, a line."""
    try:
        check()
    except (ValueError, OSError) as error:
        return [str(error)]
    return []
