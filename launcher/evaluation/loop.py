"""Evaluation: every image of a split exactly once, on any number of ranks, in one way or in several.

A way is a `RoutingOverrides`: the capacity and the number of choices of the MoE layers. All ways see the same
batches, which are read and decoded once. Legend: B images, W ranks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from data_shards.errors import DataError
from data_shards.image.geometry import EvalTransform
from data_shards.stream.batch import Batch
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, ReadOptions, StreamOptions
from launcher.config.schema import DataConfig, RunConfig
from launcher.errors import RankError
from launcher.metrics.accumulator import MetricAccumulator
from launcher.tasks.base import Task, normalize_images
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from swin_moe.config import MoEConfig
from swin_moe.moe.layer import RoutingOverrides
from swin_moe.random.keyed import sample_keys

ORDER_SEED = 0  # of the validation images where routing groups matter: the same for every run


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
        place or config.data.val,
        EvalSampling(batch_size=batch_size, **sampling),
        EvalTransform(image_size=config.model.image_sides, crop_ratio=config.data.eval_crop),
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


class Observer(Protocol):
    """Looks on while a model is evaluated in the first way."""

    def see(self, output: Any, batch: Batch) -> None:
        """One batch: what the model made of it, statistics of MoE layers by image included."""


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
        The task's metrics, images_s of the forward passes on all ranks, dropped_fraction and expert_load
        (each expert's fraction of the choices by MoE layer), without padding images; and an image of the
        first batch of rank 0, if the task makes one.
    """
    return evaluate_ways(module, stream, task, data, device, [RoutingOverrides()], beat)[0]


@torch.no_grad()
def evaluate_ways(
    module: nn.Module,
    stream: EvalStream,
    task: Task,
    data: DataConfig,
    device: torch.device,
    calls: Sequence[RoutingOverrides],
    beat: Callable[[], None] = lambda: None,
    observers: Sequence[Observer] = (),
) -> list[Evaluation]:
    """The same in several ways, the `observers` looking on at the first."""
    was_training, image = module.training, None
    module.eval()
    ways = [_Way(call, module, stream, task, device) for call in calls]
    try:
        for i, batch in enumerate(stream):
            images = normalize_images(batch.images, data, device)
            keys = send(sample_keys(0, batch.positions), device)
            outputs = [way.take(images, keys, batch, timed=i > 0 or len(stream) == 1) for way in ways]
            if i == 0 and stream.dp_rank == 0:
                image = task.visualize(module, images, outputs[0])
            for observer in observers:
                observer.see(outputs[0], batch)
            beat()
    except DataError as error:
        raise RankError(f"rank {stream.dp_rank}, evaluation: {error}") from error
    module.train(was_training)
    return [Evaluation(way.metrics(), None if i else image) for i, way in enumerate(ways)]


class _Way:
    """One way of evaluation, and what it has added up."""

    def __init__(
        self, call: RoutingOverrides, module: nn.Module, stream: EvalStream, task: Task, device: torch.device
    ) -> None:
        self._forward = Forward(module, device, call)
        self._task, self._device, self._world_size = task, device, stream.dp_size
        self._tally = MetricAccumulator(rank=stream.dp_rank, world_size=stream.dp_size)

    def take(self, images: Tensor, keys: Tensor, batch: Batch, *, timed: bool) -> Any:
        """One batch: the model's output. The first one is not `timed`, as it also warms up."""
        output, elapsed_s = self._forward(images, keys)
        clock = torch.tensor([elapsed_s, len(images)], dtype=torch.float64, device=self._device) * timed
        weights = send(batch.weights, self._device)
        counted = {name: stats.of_images(weights) for name, stats in output.moe.items()}
        self._tally.add(
            torch.cat([self._task.metric.sums(output, batch), clock]), output._replace(moe=counted)
        )
        return output

    def metrics(self) -> dict[str, Any]:
        """The result, summed over all ranks, which call it together."""
        totals = self._tally.reduce()
        *sums, elapsed_s, images = totals.sums
        return self._task.metric.compute(sums) | {
            "images_s": images * self._world_size / elapsed_s,  # the ranks work at the same time
            "dropped_fraction": totals.dropped_fraction,
            "expert_load": {layer: found.shares for layer, found in totals.layers.items()},
        }


class Forward:
    """A forward pass, timed: the host waits for the device before and after it.

    Args:
        module: a model that takes images, keys and a RoutingOverrides.
        device: of the module.
        call: of every pass; the statistics tell the images apart in any case.
    """

    def __init__(self, module: nn.Module, device: torch.device, call: RoutingOverrides) -> None:
        self._module, self._device = module, device
        self._call = replace(call, by_image=True)

    def __call__(self, images: Tensor, keys: Tensor) -> tuple[Any, float]:
        """The output for images (B, 3, H, W) with keys (B,), and the seconds that it took."""
        self._wait()
        start_s = time.perf_counter()
        output = self._module(images, keys, self._call)
        self._wait()
        return output, time.perf_counter() - start_s

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
