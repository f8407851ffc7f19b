"""The parts of a run as its configuration says them: layout, streams, augmentation, engine."""

from collections.abc import Sequence
from typing import Any

from data_shards.image.geometry import TrainTransform
from data_shards.stream.patterns import names_tars
from data_shards.stream.train import TrainStream
from data_shards.stream.webdataset import WebDatasetStream
from launcher.config.schema import ParallelConfig, RunConfig
from launcher.evaluation.loop import reading
from launcher.rundir.directory import RunDirectory
from parallel.ranks.mesh import Mesh, build_mesh
from parallel.zero.options import EngineOptions


def run_mesh(parallel: ParallelConfig, nodes: Sequence[int]) -> Mesh:
    """The layout of a run over so many ranks on each node, with every group that its exchange may use."""
    strategy = parallel.expert_exchange.strategy
    degrees = [strategy] if isinstance(strategy, int) else []
    per_node = nodes[0] if len(set(nodes)) == 1 else None
    return build_mesh(parallel.dims(sum(nodes)), ranks_per_node=per_node, gather_degrees=degrees)


def train_stream(config: RunConfig, run: RunDirectory, mesh: Mesh) -> TrainStream | WebDatasetStream:
    """This rank's part of the training split, or of tars without a manifest."""
    data = config.data
    options: dict[str, Any] = {
        "seed": config.seed,
        "global_batch_size": config.train.global_batch_size,
        "micro_batch_size": config.train.micro_batch_size,
        "dp_rank": mesh.rank,
        "dp_size": mesh.dims.world_size,
        "transform": TrainTransform(
            image_size=config.model.image_sides,
            scale=data.crop_scale,
            ratio=data.crop_ratio,
            flip_prob=data.flip_probability,
        ),
        "threads": data.decode_threads,
    }
    if names_tars(data.train):
        return WebDatasetStream(data.train, num_classes=config.model.num_classes, **options)
    quarantine = None if data.bad_samples == "stop" else run.quarantine
    return TrainStream(data.train, quarantine=quarantine, reading=reading(data), **options)


def engine_options(config: RunConfig, grad_accum_steps: int) -> EngineOptions:
    """How the engine is to work."""
    return EngineOptions(
        zero_stage=config.parallel.zero_stage,
        precision=config.train.precision,
        offload_optimizer=config.parallel.offload_optimizer,
        clip_norm=config.optim.clip_norm,
        micro_batch_size=config.train.micro_batch_size,
        grad_accum_steps=grad_accum_steps,
        deepspeed=config.deepspeed,
        optimizer=config.optim.optimizer,
    )
