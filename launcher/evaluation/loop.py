"""Evaluation: every image of a split exactly once, on any number of ranks, in one mode or in several.

A mode is a `RoutingOverrides`: the capacity and the top_k of the MoE layers. All modes get the same batches,
which are read and decoded once. Legend: B images.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.errors import DataError
from data_shards.stream.batch import Batch
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, ReadOptions, StreamOptions
from launcher.config.load import ConfigError
from launcher.config.schema import DataConfig, RunConfig
from launcher.errors import RankError
from launcher.metrics.accumulator import MetricAccumulator
from launcher.metrics.metric import Metric
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import Task
from parallel.ranks.collectives import gather_objects
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import sample_keys

T = TypeVar("T")
ORDER_SEED = 0  # of the validation images where routing groups matter: the same for every run


def validation_split(data: DataConfig) -> str:
    """The place of the validation split, of several sets the first.

    Raises:
        ConfigError: data.val is null.
    """
    places = [*data.val_places.values()]
    if not places:
        raise ConfigError(
            "data.val (null): there is nothing to evaluate; name a split, such as data.val=DIR/val"
        )
    return places[0]


def support_split(data: DataConfig) -> str:
    """The place of the training images for few-shot and k-NN.

    Raises:
        ConfigError: there are several training sets.
    """
    if isinstance(data.train, str):
        return data.train
    name, one = next(iter(data.train.items()))
    raise ConfigError(
        f"--few-shot and --knn take the images of one training set, and data.train has "
        f"{', '.join(data.train)}: name one, such as data.train={one.path} for {name}"
    )


def eval_stream(
    config: RunConfig,
    mesh: Mesh,
    *,
    grouped: bool | None = None,
    place: str | None = None,
    classes: Sequence[str] | None = None,
    **sampling: Any,
) -> EvalStream:
    """This rank's part of the validation split.

    Args:
        config: of the run.
        mesh: every rank of the world evaluates its own images.
        grouped: make batches of whole routing groups, whose images are drawn by a seed, so that evaluation
            with a capacity depends on neither the ranks nor the batch size; None does so if the model's
            evaluation capacity asks for it.
        place: another split than data.val.
        classes: class names to which the labels are mapped.
        sampling: of EvalSampling.
    """
    moe, batch_size = config.model.moe, config.train.eval_batch_size
    if grouped is None:
        grouped = groups_matter(moe, moe.eval_capacity_factor if moe else 0.0)
    if grouped:
        assert moe is not None
        batch_size = max(1, batch_size // moe.routing_group_images) * moe.routing_group_images
        sampling = {"shuffle_seed": ORDER_SEED, **sampling}
    return EvalStream(
        place or validation_split(config.data),
        EvalSampling(batch_size=batch_size, **sampling),
        task_spec(config.task).eval_data(config).transform,
        stream_options(config.data, mesh),
        classes=classes,
    )


def groups_matter(moe: MoEConfig | None, factor: float) -> bool:
    """Whether a capacity decides inside of routing groups who is served."""
    return moe is not None and moe.router != "soft" and factor != 0


def stream_options(data: DataConfig, mesh: Mesh) -> StreamOptions:
    """How a run's streams work on this rank."""
    return StreamOptions(
        dp_rank=mesh.rank,
        dp_size=mesh.dims.world_size,
        threads=data.decode_threads,
        read=read_options(data),
    )


def read_options(data: DataConfig) -> ReadOptions:
    """How a run's samples come from storage."""
    return ReadOptions(
        cache=data.cache,
        cache_bytes=int(data.cache_gib * 2**30),
        fetch_threads=data.fetch_threads,
        deadline_s=data.retry_s,
    )


class Evaluation(NamedTuple):
    """The result of an evaluation, see `evaluate`."""

    metrics: dict[str, Any]
    image: Tensor | None
    files: Sequence[Path] = ()  # that the metric wrote, on rank 0


class Observer(Protocol):
    """Gets the outputs of the first mode of an evaluation."""

    def update(self, output: Any, batch: Batch) -> None:
        """Take the model's output for one batch, with the statistics of its MoE layers by image."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What is evaluated: a model in its task."""

    model: nn.Module
    task: Task
    device: torch.device
    heartbeat: Callable[[], None]  # called after every batch
    metric: Callable[[], Metric] | None = None  # another metric than the task's
    directory: Path | None = None  # where the metric of the first call writes its files (`Metric.write`)


@torch.no_grad()
def evaluate(
    evaluated: Evaluated,
    stream: EvalStream,
    calls: Sequence[RoutingOverrides] = (RoutingOverrides(),),
    observers: Sequence[Observer] = (),
) -> list[Evaluation]:
    """Evaluate a model on all ranks together, once for each call, on the same batches.

    Every rank makes the same number of forward passes, as its stream has the same number of batches.

    Args:
        evaluated: the model.
        stream: this rank's part of the split.
        calls: one for each mode; the default has the evaluation capacity of the model.
        observers: get the outputs of the first call.

    Returns:
        An evaluation for each call, the same on every rank: the values of the metric, images_s of the forward
        passes on all ranks, dropped_fraction and expert_load (each expert's fraction of the choices by MoE
        layer), without padding images. The first one has an image of the first batches of rank 0
        (`Task.pictured_batches`), if the task makes one.
    """
    model, task, device = evaluated.model, evaluated.task, evaluated.device
    was_training, images = model.training, list[Tensor]()
    model.eval()
    modes = [_ModeTotals(call, evaluated, stream) for call in calls]
    try:
        for i, batch in enumerate(stream):
            inputs = task.eval_inputs(batch)
            keys = send(sample_keys(0, batch.positions), device)
            is_timed = i > 0 or len(stream) == 1  # the first batch also warms up
            predictions = [mode.add(inputs, keys, batch, timed=is_timed) for mode in modes]
            if i < task.pictured_batches and stream.dp_rank == 0:
                image = task.visualize(model, inputs, predictions[0])
                images += [] if image is None else [image]
            for observer in observers:
                observer.update(predictions[0], batch)
            evaluated.heartbeat()
    except DataError as error:
        raise RankError(f"rank {stream.dp_rank}, evaluation: {error}") from error
    model.train(was_training)
    image = one_below_the_other(images)
    first, *others = (mode.metrics() for mode in modes)
    return [
        Evaluation(first, image, modes[0].files(evaluated.directory)),
        *(Evaluation(one, None) for one in others),
    ]


def one_below_the_other(images: Sequence[Tensor]) -> Tensor | None:
    """Images (3, height, width) in one, of the greatest width; black beyond them. None without any."""
    if not images:
        return None
    width = max(image.shape[2] for image in images)
    return torch.cat([F.pad(image, (0, width - image.shape[2])) for image in images], dim=1)


class _ModeTotals:
    """The metric and the sums of one mode of an evaluation."""

    def __init__(self, call: RoutingOverrides, evaluated: Evaluated, stream: EvalStream) -> None:
        self._metric = (evaluated.metric or evaluated.task.metric)()
        self._device, self._stream = evaluated.device, stream
        self._task, self._model, self._call = evaluated.task, evaluated.model, replace(call, by_image=True)
        self._totals = MetricAccumulator(rank=stream.dp_rank, world_size=stream.dp_size)

    def add(self, inputs: Any, keys: Tensor, batch: Batch, *, timed: bool) -> Any:
        """Compute one batch and add it to the metric; its time counts if it is `timed`. The prediction."""
        prediction, elapsed_s = timed_call(
            lambda: self._task.predict(self._model, inputs, keys, self._call), self._device
        )
        self._metric.update(prediction, batch)
        clock = torch.tensor([elapsed_s, len(keys)], dtype=torch.float64, device=self._device) * timed
        weights = send(batch.weights, self._device)
        counted = {name: stats.of_images(weights) for name, stats in prediction.moe.items()}
        self._totals.add(dict(zip(("elapsed_s", "images"), clock, strict=True)), counted)
        return prediction

    def metrics(self) -> dict[str, Any]:
        """The result of all ranks, which call it together."""
        self._metric.reduce()
        is_first = self._stream.dp_rank == 0
        values: dict[str, Any] = gather_objects(self._metric.compute() if is_first else None)[0]
        totals = self._totals.reduce()
        seconds, images = totals.sums["elapsed_s"], totals.sums["images"]
        return values | {
            "images_s": images * self._stream.dp_size / seconds,  # the ranks work at the same time
            "dropped_fraction": totals.dropped_fraction,
            "expert_load": {layer: one.shares for layer, one in totals.layers.items()},
        }

    def files(self, directory: Path | None) -> Sequence[Path]:
        """Let the metric write its files into a directory, on rank 0, after `metrics`."""
        if directory is None or self._stream.dp_rank:
            return ()
        return self._metric.write(directory, self._stream.manifest)


def timed_call(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What a call returns, and the seconds that it took: the host waits for the device before and after."""
    _wait(device)
    start_s = time.perf_counter()
    result = call()
    _wait(device)
    return result, time.perf_counter() - start_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
