"""A checkpoint that is loaded for evaluation, and the files of its results: RUN/eval/CHECKPOINT/."""

import csv
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.evaluation.loop import Evaluated
from launcher.metrics.metric import Metric
from launcher.metrics.trackers.base import as_image
from launcher.rundir.directory import RunDirectory
from launcher.tasks.image_data import backbone_views
from launcher.tasks.registry import build_task, task_spec
from launcher.tasks.spec import Task, TaskContext
from launcher.validation.resume_policy import recorded_classes
from parallel.checkpoint.latest import IntactCheckpoint, latest_intact
from parallel.checkpoint.load import load_weights
from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.scores import named
from parallel.checkpoint.verify import read_verified
from parallel.durable import atomic_write
from parallel.experts.names import EMA, MASTER, TEACHER
from parallel.ranks.collectives import RanksError, agree
from parallel.ranks.dims import ParallelDims
from parallel.ranks.mesh import Mesh, build_mesh
from parallel.ranks.rank import Ranks
from parallel.zero.dtypes import DTYPES
from swin_moe.backbone.backbone import Backbone

logger = logging.getLogger(__name__)
RESULTS = {MASTER: "", EMA: "-average", TEACHER: "-teacher"}  # what follows the checkpoint's name


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """Which checkpoint of which run is evaluated."""

    config: RunConfig  # the model computes in its precision, as in the evaluations of training
    run: RunDirectory
    checkpoint: str | None = None  # its name, or best; None is the newest intact one
    kind: str = MASTER  # of its weights: the trained ones, or a moving average of them (AVERAGES)
    val: str | None = None  # the name of the validation set, where there are several and it is not the first


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """A checkpoint's model on this rank, and everything else that its evaluation needs."""

    config: RunConfig
    run: RunDirectory
    checkpoint: IntactCheckpoint
    mesh: Mesh
    device: torch.device
    task: Task
    model: nn.Module
    heartbeat: Callable[[], None]  # called after every batch
    directory: Path  # of the results
    metric: Callable[[], Metric]  # one for each pass over the split
    written: dict[str, Any] = field(default_factory=dict)  # the records of `write_json` by name, on rank 0
    mapped_to: Sequence[str] | None = None  # the class names to which labels of data.val are mapped

    @property
    def evaluated(self) -> Evaluated:
        """The model for `evaluate`."""
        return Evaluated(
            model=self.model,
            task=self.task,
            device=self.device,
            heartbeat=self.heartbeat,
            metric=self.metric,
        )

    @property
    def backbone(self) -> Backbone:
        """The part of the model before its head."""
        return task_spec(self.config.task).backbone(self.model)

    @property
    def name(self) -> str:
        """The checkpoint for a person, with the precision where that is not fp32."""
        precision = self.config.train.precision
        computed = "" if precision == "fp32" else f", {precision}"
        return f"{self.checkpoint.path.name} (step {self.checkpoint.manifest['step']}{computed})"

    def views(self, batch: Batch) -> Iterable[Tensor]:
        """What the backbone alone takes of a batch, on the device, view after view: see `backbone_views`.

        Raises:
            ConfigError: the task gives its model something else.
        """
        views = backbone_views(self.task.eval_inputs(batch))
        if views is None:
            raise ConfigError(
                "--few-shot, --knn and --throughput give images or clips of one size to the backbone alone; "
                f"the inputs of task={self.config.task} are none: leave these options out"
            )
        return views

    @property
    def samples(self) -> str:
        """What the samples of the task are called."""
        return "videos" if task_spec(self.config.task).sees == "clips" else "images"

    def say(self, text: str) -> None:
        """Print lines, on rank 0."""
        if self.mesh.is_first:
            print(text, flush=True)

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write NAME.json, on rank 0, with the checkpoint's name and step, and the precision."""
        if self.mesh.is_first:
            of = {"checkpoint": self.checkpoint.path.name, "step": self.checkpoint.manifest["step"]}
            of["precision"] = self.config.train.precision
            self.written[name] = {**of, **record}
            text = json.dumps(self.written[name], indent=1) + "\n"
            atomic_write(self.directory / f"{name}.json", text, sync="none")

    def write_png(self, name: str, image: Tensor) -> None:
        """Write an image (3, height, width) in 0 to 1 as NAME.png, on rank 0."""
        if self.mesh.is_first:
            pixels = as_image(image.cpu()).transpose(1, 2, 0)
            Image.fromarray(pixels).save(self.directory / f"{name}.png")
            self.say(f"  pictures: {self.directory / name}.png")

    def write_csv(self, name: str, header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
        """Write NAME.csv, on rank 0."""
        if self.mesh.is_first:
            with (self.directory / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([header, *rows])


def load(
    request: EvalRequest, ranks: Ranks, device: torch.device, heartbeat: Callable[[], None]
) -> EvalContext:
    """Load a checkpoint on any number of ranks; every rank calls it.

    Args:
        request: the checkpoint.
        ranks: of this evaluation. The experts spread over as many of them as divide both numbers, unsliced.
        device: of this rank.
        heartbeat: called after every batch.

    Raises:
        ConfigError: there is no such checkpoint, or no place for the results.
        CheckpointError: it is damaged, of another model, or holds no moving average.
    """
    run, moe = request.run, request.config.model.moe
    checkpoint = chosen(run, request.checkpoint)
    directory = run.path / "eval" / f"{checkpoint.path.name}{RESULTS[request.kind]}" / (request.val or "")
    make(directory, first=ranks.rank == 0)
    ep_size = gcd(ranks.world_size, moe.num_experts) if moe else 1
    dims = ParallelDims(world_size=ranks.world_size, ep_size=ep_size)
    mesh = build_mesh(dims, ranks_per_node=ranks.local_world_size)
    config, task = load_task(request.config, checkpoint, mesh, device, request.kind)
    if mesh.is_first:
        for notice in checkpoint.notices:
            logger.warning("%s", notice)
    return EvalContext(
        config=config,
        run=run,
        checkpoint=checkpoint,
        mesh=mesh,
        device=device,
        task=task,
        model=task.model.eval(),
        heartbeat=heartbeat,
        directory=directory,
        metric=task.metric,
    )


def load_task(
    config: RunConfig, checkpoint: IntactCheckpoint, mesh: Mesh, device: torch.device, kind: str = MASTER
) -> tuple[RunConfig, Task]:
    """A task with the weights of a checkpoint, in the precision of a run; every rank calls it.

    Args:
        config: of the run.
        checkpoint: verified.
        mesh: of this evaluation.
        device: of this rank.
        kind: of the weights.

    Returns:
        The configuration of the evaluation, and the task.

    Raises:
        CheckpointError: it is of another model, or holds no moving average.
    """
    # Tutel drops more than our backend in an evaluation
    config = replace(config, model=config.model.with_native_backend())
    # what was chosen for the layout of training may not fit this one
    exchange = replace(config.parallel.expert_exchange, strategy="ep", hierarchical=False)
    task = build_task(
        config,
        TaskContext(
            mesh=mesh, device=device, exchange=exchange, classes=recorded_classes(checkpoint.manifest)
        ),
    )
    experts = config.model.moe.num_experts if config.model.moe else 0
    load_weights(checkpoint.path, task.model, experts, checkpoint.manifest, kind=kind)
    task.model.to(DTYPES[config.train.precision])
    return config, task


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
    """The checkpoint of a name, or the newest intact one; every rank calls it together."""
    if name is not None:
        try:
            path, *_ = agree(lambda: named(run.checkpoints, name), (CheckpointError,))
        except RanksError as error:
            raise ConfigError(str(error)) from error
        return IntactCheckpoint(path=path, manifest=read_verified(path), notices=[])
    checkpoint = latest_intact(run.checkpoints)
    if checkpoint is None:
        raise ConfigError(f"{run.path} has no checkpoint yet; they lie in {run.checkpoints}")
    return checkpoint
