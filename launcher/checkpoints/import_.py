"""`swin-moe checkpoint convert`: official training files become a run that `--resume auto` goes on with."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.format.index import Manifest
from data_shards.order.state import make_state
from data_shards.order.weighted import make_order
from data_shards.storage.manifest import checked_manifest
from data_shards.stream.quarantine import Quarantine
from launcher.checkpoints.file_errors import file_errors
from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.validation.data_rules import train_sampling
from launcher.validation.label_spaces import trained_classes
from launcher.validation.rules import check, steps_in
from launcher.validation.train_sets import mixture_of, train_manifests
from parallel.checkpoint.write import write_tensors
from parallel.experts.names import BUFFER, MASTER, MOMENTS, parameter_shapes
from parallel.versions import version_record
from swin_moe.backbone.model import SwinTransformer
from swin_moe.registry import build_model
from swin_moe.weights import native
from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.finite import check_finite
from swin_moe.weights.load import LoadReport, load_weights
from swin_moe.weights.moe_shards import base_of
from swin_moe.weights.optimizer_state import TrainingState, read_training_state


@file_errors()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out a parsed `checkpoint convert`: the exit status."""
    config = load_config(args.config, [*args.overrides, f"run_dir={args.run_directory}"])
    check(config)
    if args.step is not None and args.step < 0:
        raise ConfigError(f"--step ({args.step}) must be at least 0")
    if config.data.trains_on_tars:
        raise ConfigError(
            f"data.train ({config.data.train}) must be shards with a manifest, in which a checkpoint has its "
            "place; `swin-moe shards index` writes it"
        )
    train = train_manifests(config.data)
    images = mixture_of(config.data, train).samples
    model, report = _weights(config, args.source)
    state = TrainingState() if args.without_optimizer else read_training_state(args.source)
    step = args.step if args.step is not None else step_of(state, config, images)
    total = steps_in(config.train.duration, config, images)
    if step > total:
        raise ConfigError(
            f"step {step} is beyond train.duration ({config.train.duration}, {total} steps): set a longer "
            "one, or --step"
        )
    tensors = checkpoint_tensors(model, state, report)
    target = RunDirectory(config.run_dir)
    target.lock(resume=False)
    try:
        path = write_tensors(
            target.checkpoints, step, tensors, record(config, train, step, state, args.source)
        )
        target.config.write_text(dump_config(config))
    finally:
        target.unlock()
    used = {"optimizer", "epoch"} if state.moments else set()
    report = replace(report, beside=[name for name in report.beside if name not in used])
    print("\n  ".join([str(report), *state.notices, *_told(state, step, total, config, images)]))
    args.answer = {"path": path, "step": step, "run_dir": config.run_dir}
    print(f"wrote {path}\ngo on: swin-moe train {args.config} run_dir={config.run_dir} ... --resume auto")
    return 0


def _weights(config: RunConfig, source: Path) -> tuple[SwinTransformer, LoadReport]:
    if source.is_dir() and native.checkpoint_in(source):
        raise WeightsError(
            f"{source} holds a checkpoint already: swin-moe train --resume auto goes on from it"
        )
    if not source.is_file() and base_of(source) is None:
        raise WeightsError(f"{source} is neither an official file nor a set of rank files")
    model = build_model(config.model, seed=config.seed)
    return model, load_weights(model, source)


def step_of(state: TrainingState, config: RunConfig, images: int) -> int:
    """The step at which this configuration completes the epochs of a file; without any, its updates."""
    if not state.moments:
        return 0
    if state.epochs is None:
        return state.updates or 0
    return steps_in(f"{state.epochs} epochs", config, images)


def checkpoint_tensors(model: SwinTransformer, state: TrainingState, report: LoadReport) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name.

    Raises:
        WeightsError: the moments are not those of exactly this model's parameters.
    """
    experts = model.config.moe.num_experts if model.config.moe else 0
    shapes, held = parameter_shapes(model, experts), native.tensors_of(model, experts)
    if state.moments and report.changes:
        raise WeightsError(
            f"the weights were adapted to the model ({some(report.changes)}), which moments cannot be: "
            "--without-optimizer imports the weights alone"
        )
    tensors = {f"{MASTER}/{name}": held[name].float().contiguous() for name in shapes}
    for kind in MOMENTS:
        found = {name: t for name, t in state.moments.get(kind, {}).items() if name not in report.dropped}
        found = found or {name: torch.zeros(shape) for name, shape in shapes.items()}
        _check_moments(kind, found, shapes)
        check_finite({f"{kind} of {name}": tensor for name, tensor in found.items()})
        tensors |= {f"{kind}/{name}": found[name].contiguous() for name in shapes}
    buffers = held.keys() - shapes.keys()
    return tensors | {
        f"{BUFFER}/{name}": held[name].float() if held[name].is_floating_point() else held[name].long()
        for name in sorted(buffers)
    }


def _check_moments(kind: str, found: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> None:
    missing = [name for name in shapes if name not in found]
    extra = [name for name in found if name not in shapes and not _is_zero_bias(name, found[name])]
    other = [name for name in shapes if name in found and list(found[name].shape) != shapes[name]]
    for what, names in (("missing", missing), ("of no parameter", extra), ("of another shape", other)):
        if names:
            raise WeightsError(
                f"{kind}: {len(names)} moments are {what} ({some(names)}); --without-optimizer imports the "
                "weights alone"
            )


def _is_zero_bias(name: str, moment: Tensor) -> bool:
    """Tutel's fc2 bias where the model has none: it never moved."""
    return name.endswith(".fc2_bias") and not moment.any()


def record(
    config: RunConfig, train: Mapping[str, Manifest], step: int, state: TrainingState, source: Path
) -> dict[str, Any]:
    """What the manifest says beside tensors and files, as a training run writes it."""
    samples = step * config.train.global_batch_size
    sets = {} if isinstance(config.data.train, str) else config.data.train
    manifests = [*train.values()]
    order = make_order(sets, manifests, train_sampling(config))
    quarantine = [Quarantine(None, one).digest(samples) for one in manifests]
    val = {option: checked_manifest(place) for option, place in config.data.val_places.items()}
    of_val = next(iter(val.values())).classes if val else None
    return {
        "state": {"data": make_state(manifests, order, samples, quarantine)},
        "config": dump_config(config),
        "val_manifests": {option: one.digest for option, one in val.items()},
        "classes": trained_classes(config, manifests[0].classes, of_val),
        "adam_steps": adam_steps(state, step),
        "imported_from": str(source),
        "versions": version_record("torch", "swin-moe"),
    }


def adam_steps(state: TrainingState, step: int) -> int:
    """Updates that the moments are of, for Adam's bias correction; with another batch not the step."""
    if not state.moments:
        return 0
    return step if state.updates is None else state.updates


def _told(state: TrainingState, step: int, total: int, config: RunConfig, images: int) -> list[str]:
    """What the step was taken to be, and from what."""
    batch = config.train.global_batch_size
    per_epoch = f"{images / batch:.1f} steps an epoch ({images} images, {batch} a step)"
    if not state.moments:
        return [f"no optimizer state: moments are zero, and the run stands at step {step} of {total}"]
    lines = [
        f"AdamW's moments of {len(state.moments[MOMENTS[0]])} tensors",
        f"epochs completed: {state.epochs}, at {per_epoch}: step {step} of {total}"
        if state.epochs is not None
        else f"no epoch in the file: step {step} of {total}, as AdamW counted",
    ]
    if config.optim.optimizer == "sgd":
        lines.append("optim.optimizer=sgd has no use for them: its momentum starts at zero")
    elif state.updates != step:
        lines.append(f"AdamW goes on from the {adam_steps(state, step)} updates that it had counted there")
    return lines
