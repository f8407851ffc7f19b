"""`swin-moe convert` and `swin-moe export`: weights from one format to another, and out of a run."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from launcher.checkpoints.file_errors import file_errors
from launcher.config.load import ConfigError, config_file, load_config
from launcher.config.schema import DataConfig, RunConfig
from launcher.evaluation.recorded import recorded_config
from launcher.tasks.registry import initialized_start, start_on_meta, task_spec
from parallel.checkpoint.scores import named
from parallel.experts.names import MASTER
from swin_moe.backbone.backbone import Backbone
from swin_moe.config import ModelConfig
from swin_moe.options import from_tree, option_problems
from swin_moe.registry import build_backbone, build_model
from swin_moe.weights.adapt import ClassMap, Head
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.export import check_format, check_model, save_weights
from swin_moe.weights.hf_processor import processor_gap
from swin_moe.weights.input_spec import InputSpec, input_spec_of
from swin_moe.weights.load import LoadOptions, apply, plan_load
from swin_moe.weights.native import config_of, has_classifier
from swin_moe.yaml_files import YamlError, read_yaml


def run_convert(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out a parsed `convert`: the exit status."""
    config, inputs = _recipe(args.config) if args.config else (config_of(args.source), None)
    if config is None:
        raise WeightsError(f"{args.source} does not say which model it is of; give --config CONFIG")
    run = _run_with_heads(args.config) if args.config else None
    build = partial(_with_heads, run) if run else partial(_plain, build_model, config)
    head: Head = args.head if args.head in ("strict", "replace") else ClassMap.read(args.head)
    options = LoadOptions(head=head, head_option="--head", average="ema" if args.ema else None)
    return _rewrite(build, config, args, args.source, options, inputs)


@file_errors()
def run_export(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out a parsed `export`: the exit status."""
    source = named(args.source / "checkpoints", args.checkpoint) if args.checkpoint else args.source
    config = config_of(source) if source.is_dir() else None
    if config is None:
        raise ConfigError(f"{source} is no run with a checkpoint; weights that are none: swin-moe convert")
    options = LoadOptions(average=None if args.kind == MASTER else args.kind)
    run = recorded_config(source)
    if task_spec(run.task).pretrained:
        return _rewrite(partial(_with_heads, run), config, args, source, options)
    make = build_model if has_classifier(source) else build_backbone
    return _rewrite(partial(_plain, make, config), config, args, source, options)


def _rewrite(
    build: Callable[[str], nn.Module],
    config: ModelConfig,
    args: argparse.Namespace,
    source: Path,
    options: LoadOptions,
    otherwise: InputSpec | None = None,
) -> int:
    """Write the weights of `source` as the arguments say; `otherwise` are its images if it does not know.

    `build` makes the model for a format, or refuses the format.
    """
    model = build(args.to)
    report = apply(model, plan_load(model, source, options))
    print(report)
    inputs = input_spec_of(source) or otherwise
    if inputs and len(inputs.classes or ()) != config.num_classes:  # of another head: the classes are others
        inputs = replace(inputs, classes=None)
    written = save_weights(model, args.out, args.to, inputs)
    print(f"wrote {written} ({args.to})")
    args.answer = {"source": source, "wrote": written, "format": args.to, "tensors": report.loaded}
    if args.to == "hf" and (gap := _images_gap(model, config, inputs)):
        print(f"  without preprocessor_config.json: {gap}")
    return 0


def _images_gap(model: nn.Module, config: ModelConfig, inputs: InputSpec | None) -> str | None:
    """Why a folder for transformers does not say how to make the images of an evaluation; None if it does."""
    if isinstance(model, Backbone) or inputs is None:
        return processor_gap(config, inputs)
    return (
        "the task decides the size of its images; they are normalized with "
        f"mean {list(inputs.mean)} and std {list(inputs.std)}"
    )


def _plain(make: Callable[[ModelConfig], Backbone], config: ModelConfig, format: str) -> nn.Module:
    """A backbone or a classifier, for a format that can hold it."""
    check_format(config, format)
    return make(config)


def _with_heads(run: RunConfig, format: str) -> nn.Module:
    """The model of a task with its heads, for a format that can hold it."""
    model = start_on_meta(run)
    check_model(model, format)
    return initialized_start(model, run)


def _run_with_heads(name: str) -> RunConfig | None:
    """The configuration of a name or file if its task has heads that weights are loaded into; else None."""
    file = config_file(name)
    try:
        tree, _ = read_yaml(file)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    task = tree.get("task", RunConfig.task)
    return load_config(file) if isinstance(task, str) and task_spec(task).pretrained else None


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """The sections of a configuration that describe a model and its images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig | None = None


def _recipe(name: str) -> tuple[ModelConfig, InputSpec | None]:
    """The model of a configuration, and its images if the file describes any.

    Args:
        name: a YAML file, of which `model:` is enough, or the name of a recipe.
    """
    file = config_file(name)
    try:
        tree, _ = read_yaml(file)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    sections = {name: tree[name] for name in ("model", "data") if tree.get(name) is not None}
    if isinstance(data := sections.get("data"), dict):
        sections["data"] = {"train": "", "val": None, **data}  # no shards are read here
    if problems := option_problems(_Recipe, sections):
        raise ConfigError(f"{file}: {'; '.join(problems)}")
    recipe = from_tree(_Recipe, sections)
    if recipe.data is None:
        return recipe.model, None
    return recipe.model, InputSpec(
        mean=recipe.data.mean, std=recipe.data.std, eval_crop=recipe.data.eval_crop
    )
