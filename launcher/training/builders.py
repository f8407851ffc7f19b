"""Building the parts of a run from its configuration: mesh, training stream, trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from data_shards.order.sampling import TrainSampling
from data_shards.stream.base import TrainingStream
from data_shards.stream.eval import EvalStream
from data_shards.stream.mixed import MixedStream, share_out
from data_shards.stream.options import StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.stream.webdataset import WebDatasetStream
from launcher.config.schema import ParallelConfig, RunConfig
from launcher.evaluation.loop import stream_options
from launcher.process.run_rank import RankContext
from launcher.rundir.directory import RunDirectory
from launcher.tasks.param_groups import freeze, parameter_groups
from launcher.tasks.pretrained import start_from
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import DataSpec, Task, TaskContext
from launcher.training.nonfinite import GradientSearch, SkippedSteps
from launcher.training.profiler import StepProfiler
from launcher.training.schedules import Schedule, ema_momentum
from launcher.training.scores import EarlyStop, ScoreBoard
from launcher.training.spikes import SpikeGuard
from launcher.training.trainer import Trainer
from launcher.validation.data_rules import train_sampling
from launcher.validation.label_spaces import is_mapped_by_name, trained_classes
from launcher.validation.rules import steps_in
from parallel.checkpoint.async_saver import CheckpointSaver
from parallel.checkpoint.commit import committed
from parallel.checkpoint.scores import ScoreKind
from parallel.experts.names import EMA, MASTER
from parallel.ranks.mesh import Mesh, build_mesh
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from parallel.zero.options import EngineOptions
from swin_moe.backbone.stage import compile_blocks


def run_mesh(parallel: ParallelConfig, nodes: Sequence[int]) -> Mesh:
    """Build the mesh of a run with every process group that its expert exchange may use.

    Args:
        parallel: the layout.
        nodes: the number of ranks on each node.
    """
    strategy = parallel.expert_exchange.strategy
    degrees = [strategy] if isinstance(strategy, int) else []
    per_node = nodes[0] if len(set(nodes)) == 1 else None
    return build_mesh(parallel.dims(sum(nodes)), ranks_per_node=per_node, gather_degrees=degrees)


def train_stream(
    config: RunConfig, run: RunDirectory, mesh: Mesh
) -> TrainStream | WebDatasetStream | MixedStream:
    """Open this rank's part of the training data: one split or several, or tars without a manifest."""
    data = config.data
    sampling = train_sampling(config)
    of_task, options = task_spec(config.task).train_data(config), stream_options(data, mesh)
    if isinstance(data.train, str) and data.trains_on_tars:
        return WebDatasetStream(
            data.train,
            sampling,
            of_task.transform,
            options,
            num_classes=config.model.num_classes,
            fields=of_task.members,
        )
    options = replace(options, quarantine=None if data.bad_samples == "stop" else run.quarantine)
    if of_task.beside:
        return _mixed_stream(config, sampling, of_task, options)
    return TrainStream(
        data.train, sampling, of_task.transform, options, match_classes=is_mapped_by_name(config) or None
    )


def _mixed_stream(
    config: RunConfig, sampling: TrainSampling, data: DataSpec, options: StreamOptions
) -> MixedStream:
    """The training sets and the further splits of a task; the threads are shared out as the samples are."""
    samplings, total = share_out(sampling, data.shares), sum(data.shares.values())
    threads = {name: max(1, round(options.threads * share / total)) for name, share in data.shares.items()}
    of_part = {name: replace(options, threads=count) for name, count in threads.items()}
    first = TrainStream(
        config.data.train,
        samplings[data.part],
        data.transform,
        of_part[data.part],
        match_classes=is_mapped_by_name(config) or None,
    )
    beside = {
        name: TrainStream(part.split, samplings[name], part.transform, of_part[name])
        for name, part in data.beside.items()
    }
    return MixedStream({data.part: first, **beside})


def engine_options(config: RunConfig, grad_accum_steps: int) -> EngineOptions:
    """The engine's options, from those of the run."""
    return EngineOptions(
        zero_stage=config.parallel.zero_stage,
        precision=config.train.precision,
        offload_optimizer=config.parallel.offload_optimizer,
        max_grad_norm=config.optim.max_grad_norm,
        micro_batch_size=config.train.micro_batch_size,
        grad_accum_steps=grad_accum_steps,
        deepspeed=config.deepspeed,
        optimizer=config.optim.optimizer,
    )


def score_kind(config: RunConfig, task: Task, val: Mapping[str, EvalStream]) -> ScoreKind:
    """What decides which checkpoint is best: the primary metric on the first of the validation sets.

    If the run keeps a moving average of the weights, the value is that of the average.
    """
    metric, first = task.metric(), next(iter(val.values()), None)
    return ScoreKind(
        metric=metric.primary,
        higher_is_better=metric.higher_is_better,
        weights=EMA if config.train.ema_decay else MASTER,
        split=first.manifest.digest if first else None,
    )


def build_trainer(
    config: RunConfig,
    run: RunDirectory,
    mesh: Mesh,
    device: torch.device,
    stream: TrainingStream,
    val: Mapping[str, EvalStream],
    context: RankContext,
) -> Trainer:
    """Build everything that training needs: model, initial weights, engine, master weights, saver, schedule.

    Args:
        config: of the run.
        run: its directory.
        mesh: of `run_mesh`.
        device: of this rank.
        stream: of `train_stream`.
        val: the validation sets by name; none for training without evaluation.
        context: of this rank.

    Raises:
        ConfigError: pretrained weights do not fit, or `optim.freeze` matches nothing; on all ranks.
    """
    train, keep, parallel = config.train, config.checkpoint, config.parallel
    spec = task_spec(config.task)
    steps = partial(steps_in, config=config, num_samples=stream.num_samples)
    total_steps = steps(train.duration)
    task = spec.build(
        config,
        TaskContext(
            mesh=mesh,
            device=device,
            sharded=parallel.zero_stage == 3,
            total_steps=total_steps,
            exchange=parallel.expert_exchange,
            classes=trained_classes(
                config, stream.classes, next((one.classes for one in val.values()), None)
            ),
        ),
    )
    model = task.model
    if train.pretrained and not committed(run.checkpoints):
        start_from(train, spec.start_of(model), mesh)
    frozen = freeze(model, config.optim.freeze, spec.parameters)
    if frozen and mesh.is_first:
        print(f"frozen: {len(frozen)} of {len(list(model.parameters()))} tensors")
    if train.compile:
        compile_blocks(model)
    spikes = SpikeGuard(train.spike_factor, train.spike_action)
    engine = Engine(
        model,
        parameter_groups(model, config.optim, spec.parameters),
        mesh,
        engine_options(config, stream.grad_accum_steps),
        spikes.accepts if spikes.is_on else None,
    )
    masters = MasterWeights(engine.deepspeed, ema_momentum(train))
    task.attach(engine, masters)
    return Trainer(
        config=config,
        run=run,
        mesh=mesh,
        device=device,
        context=context,
        stream=stream,
        val=val,
        task=task,
        backbone=spec.backbone(model),
        engine=engine,
        masters=masters,
        saver=CheckpointSaver(
            run.checkpoints,
            mesh,
            asynchronous=keep.asynchronous,
            keep_last=keep.keep_last,
            keep_every=steps(keep.keep_every) if keep.keep_every else None,
        ),
        schedule=Schedule(
            config.optim, global_batch_size=train.global_batch_size, total_steps=total_steps, steps=steps
        ),
        spikes=spikes,
        profiler=StepProfiler(run.profile, train.profile, rank=mesh.rank, device=device),
        skipped=SkippedSteps(train.max_skipped_steps),
        board=ScoreBoard(
            score_kind(config, task, val),
            keep_best=keep.keep_best,
            early_stop=EarlyStop.of(train.early_stop, steps) if train.early_stop else None,
        ),
        gradient_search=GradientSearch(model),
        steps=steps,
        total_steps=total_steps,
        prefetch_inputs=device.type == "cuda",
    )
