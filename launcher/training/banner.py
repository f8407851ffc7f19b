"""What a run is and where it starts, in a few lines. `train` prints them before its first step."""

import time
from collections.abc import Mapping
from functools import partial

import torch

from data_shards.format.index import Manifest
from data_shards.storage.manifest import checked_manifest
from data_shards.stream.patterns import expand, redacted
from launcher.config.schema import DataConfig, RunConfig
from launcher.console.counts import counted
from launcher.tasks.registry import model_on_meta, task_spec
from launcher.training.schedules import LR_BATCH, Schedule
from launcher.validation.rules import steps_in
from launcher.validation.train_sets import mixture_of, train_manifests
from parallel.checkpoint.latest import IntactCheckpoint
from swin_moe.backbone.flops import count_active_parameters, count_parameters
from swin_moe.config import ModelConfig


def banner(config: RunConfig, world_size: int | None = None, device: str | None = None) -> list[str]:
    """Model, data, length, batch, learning rate and device of a run, a line each; `check` prints the same.

    Args:
        config: that the rules of launcher/validation accept.
        world_size: ranks of the run; None where that is not known.
        device: of rank 0; None where the ranks are elsewhere.

    Raises:
        DataError: a manifest cannot be read.
    """
    train = train_manifests(config.data)
    num_samples = mixture_of(config.data, train).samples if train else None
    lines = {
        "model": _model(config.model),
        "parameters": _parameters(config),
        **_training_data(config, train),
        **_evaluation_data(config.data),
        "length": _length(config, num_samples),
        "batch": _batch(config, world_size),
        "optimizer": _optimizer(config, num_samples),
        "device": _device(config, world_size, device),
    }
    head = f"run: {config.run_dir}, task {config.task}, seed {config.seed}"
    return [head, *(f"  {name:<16} {text}" for name, text in lines.items())]


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of a GPU's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def start_line(
    checkpoint: IntactCheckpoint | None, total_steps: int, stopped_early: str | None = None
) -> str:
    """Where a session starts: at step 0, at the step of a checkpoint, or at the end of a finished run."""
    if checkpoint is None:
        return f"no checkpoint yet: starting at step 0 of {total_steps}"
    step, ranks = checkpoint.manifest["step"], checkpoint.manifest["world_size"]
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(checkpoint.path.stat().st_mtime))
    source = f"{checkpoint.path.name} (written {written} by {counted(ranks, 'rank')})"
    if step >= total_steps:
        return f"all {total_steps} steps are done in {source}: the results are written again"
    if stopped_early:
        return f"training {stopped_early} ({source}): the results are written again"
    return f"resuming from {source}: {total_steps - step} of {total_steps} steps to go"


def _model(model: ModelConfig) -> str:
    height, width = model.image_sides
    moe = model.moe
    experts = "no experts"
    if moe is not None:
        blocks = sum(len(stage) for stage in moe.blocks)
        experts = f"{moe.num_experts} experts, top_k {moe.top_k}, in {blocks} of {sum(model.depths)} blocks"
    size = f"{height} x {width} pixels"
    size = f"{model.frames} frames of {size}" if model.frames else size
    return f"{size}, embed_dim {model.embed_dim}, depths {list(model.depths)}, {experts}"


def _parameters(config: RunConfig) -> str:
    model = model_on_meta(config)
    return (
        f"{count_parameters(model):,} in all, {count_active_parameters(model):,} active (used by one token)"
    )


def _training_data(config: RunConfig, train: Mapping[str, Manifest]) -> dict[str, str]:
    """data.train, each set with its share, and what a task reads beside it."""
    data = config.data
    beside = task_spec(config.task).train_data(config).beside
    parts = [
        f"{part.option}: {_contents(part.split, checked_manifest(part.split))}" for part in beside.values()
    ]
    if isinstance(data.train, str):
        (place,) = data.train_places.values()
        return {"training data": "; ".join([_contents(place, train.get("data.train")), *parts])}
    mixture, rows = mixture_of(data, train), {}
    for (option, place), share in zip(data.train_places.items(), mixture.shares, strict=True):
        epochs = share * mixture.samples / train[option].samples
        drawn = f"{share:.2%} of the images, {epochs:.4g} times its {_contents(place, train[option])}"
        rows[f"  {option.rpartition('.')[2]}"] = drawn
    head = f"{counted(len(rows), 'set')}, {mixture.samples:,} images an epoch"
    return {"training data": "; ".join([head, *parts]), **rows}


def _evaluation_data(data: DataConfig) -> dict[str, str]:
    """data.val, each set in a line."""
    contents = {
        option: _contents(place, checked_manifest(place)) for option, place in data.val_places.items()
    }
    if isinstance(data.val, str):
        return {"evaluation data": contents["data.val"]}
    if not contents:
        return {"evaluation data": "none (data.val is null)"}
    first, *_ = names = [option.rpartition(".")[2] for option in contents]
    rows = {f"  {name}": text for name, text in zip(names, contents.values(), strict=True)}
    return {"evaluation data": f"{counted(len(rows), 'set')}, compared by {first}", **rows}


def _contents(place: str, manifest: Manifest | None) -> str:
    if manifest is None:
        return f"{len(expand(place))} tars without a manifest ({redacted(place)})"
    classes = f" of {len(manifest.classes)} classes" if manifest.classes else ""
    return f"{manifest.samples:,} images{classes} ({redacted(place)})"


def _length(config: RunConfig, num_samples: int | None) -> str:
    steps = steps_in(config.train.duration, config, num_samples)
    images = steps * config.train.global_batch_size
    epochs = f" = {images / num_samples:.4g} epochs" if num_samples else ""
    return f"{counted(steps, 'step')}{epochs} = {images:,} images"


def _batch(config: RunConfig, world_size: int | None) -> str:
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    if world_size is None:
        return f"{batch} images, in micro-batches of {micro}"
    accumulation = batch // (world_size * micro)
    micro_batches = f"{accumulation} micro-batch{'es' * (accumulation > 1)}"
    return f"{batch} images = {counted(world_size, 'rank')} x {micro_batches} of {micro}"


def _optimizer(config: RunConfig, num_samples: int | None) -> str:
    optim, batch = config.optim, config.train.global_batch_size
    steps = partial(steps_in, config=config, num_samples=num_samples)
    total_steps = steps(config.train.duration)
    schedule = Schedule(optim, global_batch_size=batch, total_steps=total_steps, steps=steps)
    warmup = counted(schedule.warmup_steps, "warm-up step")
    then = "after {}, then {}" if optim.warmup_ratio is None else "at the start, {} multiplied by {}"
    return (
        f"{optim.optimizer}, peak learning rate {schedule.peak:.4g} (base_lr {optim.base_lr:g} x {batch} / "
        f"{LR_BATCH}) {then.format(warmup, optim.schedule)}"
    )


def _device(config: RunConfig, world_size: int | None, device: str | None) -> str:
    parallel = config.parallel
    ranks = f"{world_size} x " if world_size and device else ""
    layout = f"ep_size {parallel.ep_size}, ZeRO stage {parallel.zero_stage}"
    return f"{f'{ranks}{device}, ' if device else ''}{config.train.precision}, {layout}"
