"""Evaluation: every image of a split exactly once, on any number of ranks."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_shards.errors import DataError
from data_shards.loading import Reading
from data_shards.stream import EvalStream
from launcher.config import ConfigError
from launcher.errors import RankError
from launcher.run_directory import RunDirectory
from launcher.schema import DataConfig, RunConfig
from launcher.tally import Tally
from launcher.tasks import Task, normalised, task_of
from parallel.checkpoint import load_weights, read_verified
from parallel.env import Ranks
from parallel.mesh import Mesh, ParallelDims, build_mesh
from parallel.newest import Found, newest
from parallel.tensors import EMA, MASTER
from swin_moe.randomness import sample_keys


def eval_stream(config: RunConfig, mesh: Mesh) -> EvalStream:
    """This rank's part of the validation split."""
    return EvalStream(
        config.data.val,
        batch_size=config.train.eval_batch_size,
        dp_rank=mesh.rank,
        dp_size=mesh.dims.world_size,
        image_size=config.model.image_size,
        crop_ratio=config.data.eval_crop,
        threads=config.data.decode_threads,
        reading=reading(config.data),
    )


def reading(data: DataConfig) -> Reading:
    """How a run's samples come from storage."""
    return Reading(
        cache=data.cache,
        cache_bytes=int(data.cache_gib * 2**30),
        fetch_threads=data.fetch_threads,
        deadline_s=data.retry_s,
    )


def evaluate_checkpoint(
    config: RunConfig,
    run: RunDirectory,
    name: str | None,
    ranks: Ranks,
    device: torch.device,
    beat: Callable[[], None],
    *,
    averaged: bool = False,
) -> None:
    """Evaluate one checkpoint of a run on any number of ranks and print the result; every rank calls it.

    Args:
        config: of the run.
        run: its directory.
        name: of the checkpoint; None is the newest that is whole.
        ranks: of this evaluation; the experts spread over as many as divide both, none of them sliced.
        device: of this rank.
        beat: called after every batch.
        averaged: evaluate the moving average of the weights, which the run kept with train.ema_decay.

    Raises:
        ConfigError: there is no such checkpoint.
        CheckpointError: it is damaged, of another model, or holds no moving average.
    """
    found = chosen(run, name)
    moe = config.model.moe
    ep_size = gcd(ranks.world_size, moe.num_experts) if moe else 1
    dims = ParallelDims(world_size=ranks.world_size, ep_size=ep_size)
    mesh = build_mesh(dims, ranks_per_node=ranks.local_world_size)
    # what was chosen for the layout of training may not fit this one
    exchange = replace(config.parallel.expert_exchange, strategy="ep", hierarchical=False)
    task = task_of(config, device)
    model = task.build(mesh, sharded=False, exchange=exchange).to(device)
    kind = EMA if averaged else MASTER
    load_weights(found.path, model, moe.num_experts if moe else 0, found.manifest, kind=kind)
    with eval_stream(config, mesh) as stream:
        figures = evaluate(model, stream, task, config.data, device, beat).figures
    if mesh.is_first:
        sys.stderr.writelines(f"{notice}\n" for notice in found.notices)
        print(
            f"{found.path.name} (step {found.manifest['step']}): {task.line(figures)}, "
            f"{figures['images_s']:.0f} images/s, {figures['dropped_fraction']:.2%} of the tokens' choices "
            "dropped"
        )


def chosen(run: RunDirectory, name: str | None) -> Found:
    """The checkpoint of a name, or the newest that is whole; every rank calls it together."""
    if name is None:
        found = newest(run.checkpoints)
    else:
        path = run.checkpoints / name
        found = Found(path=path, manifest=read_verified(path), notices=[]) if path.is_dir() else None
    if found is None:
        raise ConfigError(f"{run.path} has no checkpoint {name or 'yet'}; they lie in {run.checkpoints}")
    return found


class Evaluation(NamedTuple):
    """The result of an evaluation, see `evaluate`."""

    figures: dict[str, Any]
    picture: Tensor | None


@torch.no_grad()
def evaluate(
    module: nn.Module,
    stream: EvalStream,
    task: Task,
    data: DataConfig,
    device: torch.device,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a model on all ranks together, at its evaluation capacity, with a `beat` after every batch.

    Returns:
        figures: those of the task, images_s, dropped_fraction, and expert_load: each expert's share of the
        choices by MoE layer; and a picture of the first images of rank 0, if the task makes any.
    """
    was_training, picture = module.training, None
    module.eval()
    tally, start_s = Tally(rank=stream.dp_rank, world_size=stream.dp_size), time.monotonic()
    try:
        for i, batch in enumerate(stream):
            images = normalised(batch.images, data, device)
            output = module(images, sample_keys(0, batch.positions).to(device))
            tally.add(task.sums(output, batch), output)
            if i == 0 and stream.dp_rank == 0:
                picture = task.picture(module, images, output)
            beat()
    except DataError as error:
        raise RankError(f"rank {stream.dp_rank}, evaluation: {error}") from error
    totals = tally.reduce()
    figures = task.figures(totals.sums)
    module.train(was_training)
    figures |= {
        "images_s": figures["images"] / (time.monotonic() - start_s),
        "dropped_fraction": totals.dropped_fraction,
        "expert_load": {layer: found.shares for layer, found in totals.layers.items()},
    }
    return Evaluation(figures=figures, picture=picture)
