"""`swin-moe convert` and `swin-moe export`: weights from one format to another, and out of a run."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.config.load import ConfigError, config_file
from launcher.config.schema import DataConfig
from launcher.console.arguments import Commands, add_averages, add_command
from parallel.experts.names import MASTER
from swin_moe.backbone.backbone import Backbone
from swin_moe.config import ModelConfig
from swin_moe.options import from_tree, option_problems
from swin_moe.registry import build_backbone, build_model
from swin_moe.weights.adapt import ClassMap, Head
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.export import FORMATS, check_format, save_weights
from swin_moe.weights.hf_processor import processor_gap
from swin_moe.weights.input_spec import InputSpec, input_spec_of
from swin_moe.weights.load import LoadOptions, apply, plan_load
from swin_moe.weights.native import config_of, has_classifier
from swin_moe.yaml_files import YamlError, read_yaml

CONVERT_HELP = """\
examples:
  swin-moe convert swinv2_tiny_patch4_window8_256.pth out.safetensors --to native \\
      --config swinv2_tiny_patch4_window8_256
  swin-moe convert hf-folder out.pth --to official --config swin_tiny_patch4_window7_224
  swin-moe convert moe.pth out.safetensors --to native --config CONFIG     of moe.pth.rank0, .rank1, ...
  swin-moe convert in22k.pth out --to hf --config CONFIG --head map22kto1k.txt

IN is recognised by its content: official files and sets of rank files, those of masked image
modeling, timm, Hugging Face, ours.
Every tensor of IN and of the model is used or named. OUT is never overwritten. See docs/weights.md.
"""
EXPORT_HELP = """\
examples:
  swin-moe export runs/demo out.safetensors
  swin-moe export runs/demo out.safetensors --ema                     the moving average of the weights
  swin-moe export runs/mine out.safetensors --teacher                 the average of the task's teacher
  swin-moe export runs/swinv2_tiny swinv2-hf --to hf --checkpoint step-00001000     for transformers

The whole model with its configuration, whatever layout wrote it; verified first. Of a task whose model has no
classifier, the backbone. OUT is never overwritten.
"""


def add_parsers(commands: Commands) -> None:
    """Add `convert` and `export` to the launcher's `commands`."""
    text = "weights from one format to another"
    convert = add_command(commands, "convert", text, CONVERT_HELP)
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source", type=Path, metavar="IN", help="a file, a folder, a run or a set of rank files"
    )
    export = add_command(commands, "export", "the weights of a run", EXPORT_HELP)
    export.set_defaults(run=run_export)
    add_export(export)
    _add_out(convert)
    convert.add_argument(
        "--config",
        metavar="CONFIG",
        help="the recipe or YAML file of the model; not needed for what this program wrote",
    )
    convert.add_argument(
        "--head",
        default="strict",
        metavar="strict | replace | FILE",
        help="a classifier of another size: refuse it, put a new one in its place, or pick its classes by a "
        "class map (default: %(default)s)",
    )
    convert.add_argument(
        "--ema", action="store_true", help="the moving average that IN holds (model_ema ...)"
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    """The arguments of `export`, which is a command of its own and one of `checkpoint`."""
    parser.add_argument("source", type=Path, metavar="RUN", help="the run directory")
    _add_out(parser)
    parser.add_argument("--checkpoint", help="step-NNNNNNNN; default: the newest")
    add_averages(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="the file, or for hf the folder, to write")
    parser.add_argument("--to", choices=FORMATS, default="native", help="default: %(default)s")


def _convert(args: argparse.Namespace, _: list[str]) -> int:
    config, inputs = _recipe(args.config) if args.config else (config_of(args.source), None)
    if config is None:
        raise WeightsError(f"{args.source} does not say which model it is of; give --config CONFIG")
    head: Head = args.head if args.head in ("strict", "replace") else ClassMap.read(args.head)
    options = LoadOptions(head=head, head_option="--head", average="ema" if args.ema else None)
    return _rewrite(build_model, config, args, args.source, options, inputs)


def run_export(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out a parsed `export`: the exit status."""
    source = args.source / "checkpoints" / args.checkpoint if args.checkpoint else args.source
    config = config_of(source) if source.is_dir() else None
    if config is None:
        raise ConfigError(f"{source} is no run with a checkpoint; weights that are none: swin-moe convert")
    options = LoadOptions(average=None if args.kind == MASTER else args.kind)
    return _rewrite(build_model if has_classifier(source) else build_backbone, config, args, source, options)


def _rewrite(
    build: Callable[[ModelConfig], Backbone],
    config: ModelConfig,
    args: argparse.Namespace,
    source: Path,
    options: LoadOptions,
    otherwise: InputSpec | None = None,
) -> int:
    """Write the weights of `source` as the arguments say; `otherwise` are its images if it does not know."""
    check_format(config, args.to)
    model = build(config)
    print(apply(model, plan_load(model, source, options)))
    inputs = input_spec_of(source) or otherwise
    if inputs and len(inputs.classes or ()) != config.num_classes:  # of another head: the classes are others
        inputs = replace(inputs, classes=None)
    print(f"wrote {save_weights(model, args.out, args.to, inputs)} ({args.to})")
    if args.to == "hf" and (gap := processor_gap(config, inputs)):
        print(f"  without preprocessor_config.json: {gap}")
    return 0


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
