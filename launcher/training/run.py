"""A training run from start to end.

Every rank calls `train`. What fails before the first step fails on all ranks together, with one message.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch

from data_shards.stream.eval import EvalStream
from launcher.config.load import ConfigError, dump_config
from launcher.config.schema import RunConfig
from launcher.errors import CrashLoopError
from launcher.evaluation.loop import eval_stream
from launcher.metrics.metric import Metric
from launcher.metrics.summary import render, summarise
from launcher.preflight.run import before_training
from launcher.process.run_rank import RankContext
from launcher.rundir.directory import RunDirectory
from launcher.rundir.heartbeat import Heartbeat
from launcher.rundir.sessions import Sessions
from launcher.training.banner import banner, device_name, start_line
from launcher.training.builders import build_trainer, run_mesh, train_stream
from launcher.validation.elastic import adapt
from launcher.validation.label_spaces import class_notes, evaluated_classes
from launcher.validation.layout import layout, print_lines
from launcher.validation.resume import check_resume
from launcher.validation.rules import advice, check, steps_in
from parallel.checkpoint.manifest import CheckpointError
from parallel.ranks.collectives import RanksError, agree
from parallel.ranks.mesh import Mesh
from parallel.ranks.rank import Ranks
from parallel.ranks.topology import node_sizes
from parallel.zero.extensions import OFFLOADED, ExtensionError, prepare_extensions

logger = logging.getLogger(__name__)

Resume = Literal["auto", "never"]


def train(
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    context: RankContext,
    resume: Resume,
    *,
    allow_change: bool = False,
    reset_crashes: bool = False,
    elastic: bool = False,
) -> None:
    """Train, evaluate, save and summarise one run; the process group is there, and every rank calls it.

    Raises:
        ConfigError, DataError, CheckpointError, LayoutError: nothing has been trained, and nothing of an
            earlier run lost.
        RunError: how the run ended otherwise, with its exit status.
    """
    run, nodes = RunDirectory(config.run_dir), node_sizes(ranks)
    if elastic:
        config = adapt(config, run, nodes, say=ranks.rank == 0)
    open_run(config, run, nodes, context, resume, reset_crashes)
    changed = check_resume(config, run.checkpoints, allow=allow_change)
    before_training(config, ranks, device)
    mesh = run_mesh(config.parallel, nodes)
    if mesh.is_first:
        say = banner(config, ranks.world_size, device_name(device))
        print_lines([*say, *layout(config, nodes), *class_notes(config)])
        for line in advice(config, device.type):
            logger.warning("%s", line)
    if changed and mesh.is_first:
        print("\n  ".join(["going on with another configuration, as --allow-change says:", *changed]))
    with (
        train_stream(config, run, mesh) as stream,
        _validation_streams(config, mesh, stream.classes) as val,
    ):
        trainer = build_trainer(config, run, mesh, device, stream, val, context)
        checkpoint = trainer.resume()
        is_finished = trainer.is_finished and run.summary.exists()
        if mesh.is_first:  # now that the checkpoint, if any, is known to be of this run
            run.config.write_text(dump_config(config))
            start = start_line(checkpoint, trainer.total_steps, trainer.stopped_early)
            end = trainer.stopped_early or f"step {trainer.step} of {trainer.total_steps}"
            print_lines([f"already finished ({end}): nothing to do" if is_finished else start])
        trainer.train()
    if mesh.is_first and not is_finished:
        report(
            config,
            run,
            trainer.task.metric(),
            ranks.world_size,
            stream.num_samples,
            stopped_early=trainer.stopped_early,
        )


@contextmanager
def _validation_streams(
    config: RunConfig, mesh: Mesh, trained: Sequence[str] | None
) -> Iterator[dict[str, EvalStream]]:
    """This rank's part of each validation set by name, in the order of the configuration."""
    classes = evaluated_classes(config, trained)
    with ExitStack() as stack:
        streams = {
            option.rpartition(".")[2]: eval_stream(config, mesh, place=place, classes=classes)
            for option, place in config.data.val_places.items()
        }
        yield {name: stack.enter_context(stream) for name, stream in streams.items()}


def report(
    config: RunConfig,
    run: RunDirectory,
    metric: Metric,
    world_size: int,
    num_samples: int | None,
    *,
    stopped_early: str | None = None,
) -> None:
    """Write and print the summary of a finished run.

    Args:
        config: of the run.
        run: its directory.
        metric: of its task.
        world_size: ranks.
        num_samples: images of an epoch, where known.
        stopped_early: where and why, if training did not last as long as configured.
    """
    epoch_steps = steps_in("1 epochs", config, num_samples) if num_samples else None
    summary = summarise(
        run, config, metric, world_size=world_size, epoch_steps=epoch_steps, stopped_early=stopped_early
    )
    print(render(summary, run, metric, *([] if num_samples else ["all of training"])))


def open_run(
    config: RunConfig,
    run: RunDirectory,
    nodes: Sequence[int],
    context: RankContext,
    resume: Resume,
    reset_crashes: bool,
) -> None:
    """Check everything, take the run directory and note that a session begins."""
    world_size = sum(nodes)

    def prepare() -> CrashLoopError | None:
        check(config, world_size, nodes, here=True)
        if config.parallel.offload_optimizer:
            prepare_extensions(OFFLOADED)
        if torch.distributed.get_rank() != 0:
            return None
        run.lock(resume=resume == "auto")
        context.sessions = Sessions(run)  # which lets go of the lock at the end, whatever that is
        try:
            context.sessions.check(config.checkpoint.crash_budget, reset=reset_crashes)
        except CrashLoopError as error:
            return error
        context.sessions.begin(world_size, reset=reset_crashes, budget=config.checkpoint.crash_budget)
        context.heartbeat = Heartbeat(run, context.watch)
        return None

    try:
        crashes = agree(prepare, (ConfigError, CheckpointError, ExtensionError, OSError))
    except RanksError as error:
        raise ConfigError(str(error)) from error
    if crashes[0] is not None:
        raise crashes[0]
    context.run = run  # its crash reports of earlier sessions are removed by now
