"""A checkpoint of a run, loaded for evaluation, and where what is found goes: RUN/eval/CHECKPOINT/."""

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.tasks.base import Task
from launcher.tasks.registry import build_task
from parallel.checkpoint.latest import IntactCheckpoint, latest_intact
from parallel.checkpoint.load import load_weights
from parallel.checkpoint.verify import read_verified
from parallel.durable import atomic_write
from parallel.experts.names import EMA, MASTER
from parallel.ranks.collectives import RanksError, agree
from parallel.ranks.mesh import Mesh, ParallelDims, build_mesh
from parallel.ranks.rank import Ranks
from parallel.zero.options import DTYPES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint's model on this rank, and all that an evaluation of it needs."""

    config: RunConfig
    run: RunDirectory
    found: IntactCheckpoint
    mesh: Mesh
    device: torch.device
    task: Task
    model: nn.Module
    beat: Callable[[], None]
    directory: Path  # for results, there on rank 0
    mapped_to: Sequence[str] | None = None  # the class names to which labels of data.val are mapped

    @property
    def name(self) -> str:
        """The checkpoint for a person, with the precision where that is not fp32."""
        precision = self.config.train.precision
        computed = "" if precision == "fp32" else f", {precision}"
        return f"{self.found.path.name} (step {self.found.manifest['step']}{computed})"

    def say(self, text: str) -> None:
        """Print lines, on rank 0."""
        if self.mesh.is_first:
            print(text, flush=True)

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write NAME.json, on rank 0, with the checkpoint's name and step, and the precision."""
        if self.mesh.is_first:
            of = {"checkpoint": self.found.path.name, "step": self.found.manifest["step"]}
            of["precision"] = self.config.train.precision
            text = json.dumps({**of, **record}, indent=1) + "\n"
            atomic_write(self.directory / f"{name}.json", text, sync="none")

    def write_csv(self, name: str, header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
        """Write NAME.csv, on rank 0."""
        if self.mesh.is_first:
            with (self.directory / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([header, *rows])


def load(
    config: RunConfig,
    run: RunDirectory,
    name: str | None,
    ranks: Ranks,
    device: torch.device,
    beat: Callable[[], None],
    *,
    averaged: bool = False,
) -> Loaded:
    """Load one checkpoint of a run on any number of ranks; every rank calls it.

    Args:
        config: of the run; the model computes in its precision, as in the evaluations of its training.
        run: its directory.
        name: of the checkpoint; None is the newest that is whole.
        ranks: of this evaluation; the experts spread over as many as divide both, none of them sliced.
        device: of this rank.
        beat: called after every batch.
        averaged: take the moving average of the weights, which the run kept with train.ema_decay.

    Raises:
        ConfigError: there is no such checkpoint, or no place for the results.
        CheckpointError: it is damaged, of another model, or holds no moving average.
    """
    found, config, moe = chosen(run, name), natively(config), config.model.moe
    directory = run.path / "eval" / f"{found.path.name}{'-average' if averaged else ''}"
    make(directory, first=ranks.rank == 0)
    ep_size = gcd(ranks.world_size, moe.num_experts) if moe else 1
    dims = ParallelDims(world_size=ranks.world_size, ep_size=ep_size)
    mesh = build_mesh(dims, ranks_per_node=ranks.local_world_size)
    # what was chosen for the layout of training may not fit this one
    exchange = replace(config.parallel.expert_exchange, strategy="ep", hierarchical=False)
    task = build_task(config, device)
    model = task.build(mesh, sharded=False, exchange=exchange).to(device)
    kind = EMA if averaged else MASTER
    load_weights(found.path, model, moe.num_experts if moe else 0, found.manifest, kind=kind)
    model.to(DTYPES[config.train.precision])
    if mesh.is_first:
        for notice in found.notices:
            logger.warning("%s", notice)
    return Loaded(
        config=config,
        run=run,
        found=found,
        mesh=mesh,
        device=device,
        task=task,
        model=model.eval(),
        beat=beat,
        directory=directory,
    )


def natively(config: RunConfig) -> RunConfig:
    """The same computed by our own layer, which knows every capacity; Tutel drops where it should not."""
    model = config.model
    if model.moe is None or model.moe.backend != "tutel":
        return config
    return replace(config, model=replace(model, moe=replace(model.moe, backend="native")))


def make(directory: Path, *, first: bool) -> None:
    """Make the directory of the results on rank 0; every rank calls it together.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        agree(lambda: directory.mkdir(parents=True, exist_ok=True) if first else None, (OSError,))
    except RanksError as error:
        raise ConfigError(f"{directory}, for the results, cannot be made: {error}") from error


def chosen(run: RunDirectory, name: str | None) -> IntactCheckpoint:
    """The checkpoint of a name, or the newest that is whole; every rank calls it together."""
    if name is None:
        found = latest_intact(run.checkpoints)
    else:
        path = run.checkpoints / name
        found = (
            IntactCheckpoint(path=path, manifest=read_verified(path), notices=[]) if path.is_dir() else None
        )
    if found is None:
        raise ConfigError(f"{run.path} has no checkpoint {name or 'yet'}; they lie in {run.checkpoints}")
    return found
