"""The whole story of a training run.

Every rank runs it. What fails before the first step fails on all ranks together, with one message.
"""

import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor

from data_shards.augment import TrainTransform
from data_shards.device_augment import Augment
from data_shards.errors import DataError
from data_shards.foreign import WebDatasetStream
from data_shards.patterns import names_tars
from data_shards.prefetch import Batch
from data_shards.stream import EvalStream, TrainStream
from launcher.check import check, steps_in
from launcher.config import ConfigError, dump_config
from launcher.errors import RankError
from launcher.evaluate import eval_stream, evaluate, normalised, reading
from launcher.metrics import MetricsLog
from launcher.optim import CosineSchedule, parameter_groups
from launcher.pretrained import start_from
from launcher.run_directory import RunDirectory
from launcher.schema import ParallelConfig, RunConfig
from launcher.summary import render, summarise
from launcher.tally import Tally, Totals
from parallel import checkpoint
from parallel.collectives import RanksError, agree
from parallel.commit import latest, prune
from parallel.env import Ranks
from parallel.masters import Masters
from parallel.mesh import Mesh, ParallelDims, build_mesh
from parallel.zero import Engine
from swin_moe.compile import compile_blocks
from swin_moe.losses import classification_loss
from swin_moe.model import build_model
from swin_moe.randomness import sample_keys

Resume = Literal["auto", "never"]


def train(config: RunConfig, ranks: Ranks, device: torch.device, resume: Resume) -> None:
    """Train, evaluate, save and summarise one run; the process group is there, and every rank calls it.

    Raises:
        ConfigError, DataError, CheckpointError: nothing has been trained, and nothing of an earlier run lost.
        RankError: the data failed on this rank in mid-run.
    """
    run = RunDirectory(config.run_dir)
    open_run(config, run, ranks.world_size, resume)
    mesh = run_mesh(config.parallel, ranks)
    with train_stream(config, run, mesh) as stream, eval_stream(config, mesh) as val:
        session = Session(config, run, mesh, device, stream, val)
        session.resume()
        if mesh.is_first:  # now that the checkpoint, if any, is known to be of this run
            run.config.write_text(dump_config(config))
        session.train()
    if mesh.is_first:
        report(config, run, ranks.world_size, stream.num_samples)
    run.unlock()


def report(config: RunConfig, run: RunDirectory, world_size: int, num_samples: int | None) -> None:
    """Write and print the summary of a finished run whose epoch has `num_samples` images, where known."""
    epoch_steps = steps_in("1 epochs", config, num_samples) if num_samples else None
    summary = summarise(run, config, world_size=world_size, epoch_steps=epoch_steps)
    print(render(summary, run, *([] if num_samples else ["all of training"])))


def open_run(config: RunConfig, run: RunDirectory, world_size: int, resume: Resume) -> None:
    """Check everything and take the run directory."""

    def prepare() -> None:
        check(config, world_size)
        if torch.distributed.get_rank() == 0:
            run.lock(resume=resume == "auto")

    try:
        agree(prepare, (ValueError, OSError))
    except RanksError as error:
        raise ConfigError(str(error)) from error


def run_mesh(parallel: ParallelConfig, ranks: Ranks) -> Mesh:
    """The layout of a run, with every group that its exchange of tokens may use."""
    dims = ParallelDims(
        world_size=ranks.world_size, ep_size=parallel.ep_size, expert_slices=parallel.expert_slices
    )
    strategy = parallel.expert_exchange.strategy
    degrees = [strategy] if isinstance(strategy, int) else []
    return build_mesh(dims, ranks_per_node=ranks.local_world_size, gather_degrees=degrees)


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
            image_size=config.model.image_size,
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


def augmentation(config: RunConfig, device: torch.device) -> Augment | None:
    """What is done to training images on the device, if anything."""
    data = config.data
    if data.augment is None:
        return None
    return Augment(data.augment, seed=config.seed, mean=data.mean, std=data.std, device=device)


class Session:
    """One process's part of one session of a run: from where the run stands to its end."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        mesh: Mesh,
        device: torch.device,
        stream: TrainStream | WebDatasetStream,
        val: EvalStream,
    ) -> None:
        self.config, self.run, self.mesh, self.device = config, run, mesh, device
        self.stream, self.val = stream, val
        exchange = config.parallel.expert_exchange
        model = build_model(config.model, seed=config.seed, mesh=mesh, exchange=exchange).to(device)
        if config.train.pretrained and latest(run.checkpoints) is None:
            start_from(config.train.pretrained, config.train.pretrained_head, model, mesh)
        if config.train.compile:
            compile_blocks(model)
        self.model = model
        self.engine = Engine(
            model,
            parameter_groups(model, config.optim),
            mesh,
            zero_stage=config.parallel.zero_stage,
            precision=config.train.precision,
            clip_norm=config.optim.clip_norm,
            micro_batch_size=config.train.micro_batch_size,
            grad_accum_steps=stream.grad_accum_steps,
        )
        self.masters = Masters(self.engine.deepspeed)
        self.total_steps = self.steps(config.train.duration)
        self.schedule = CosineSchedule(
            config.optim,
            global_batch_size=config.train.global_batch_size,
            warmup_steps=self.steps(config.optim.warmup),
            total_steps=self.total_steps,
        )
        self.augment = augmentation(config, device)
        self.step = self.saved_step = 0

    def steps(self, duration: str) -> int:
        """Optimizer steps of a duration."""
        return steps_in(duration, self.config, self.stream.num_samples)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        path = latest(self.run.checkpoints)
        if path is None:
            return
        num_experts = self.config.model.moe.num_experts if self.config.model.moe else 0
        self.stream.load_state_dict(checkpoint.read_manifest(path)["state"]["data"])
        self.step = self.saved_step = checkpoint.load(path, self.masters, num_experts)["step"]

    def train(self) -> None:
        """Take every step that is left; evaluate and save on the way and at the end."""
        self.log = self.open_log()
        self.engine.train()
        batches = iter(self.stream)
        while self.step < self.total_steps:
            self.train_step(batches)
            if self.is_due(self.config.train.eval_every) or self.step == self.total_steps:
                self.evaluate()  # before the save: a resumed run does not come back to this step
            if self.is_due(self.config.checkpoint.every):
                self.save()
        if self.saved_step != self.step:
            self.save()
        if self.log:
            self.log.close()

    def open_log(self) -> MetricsLog | None:
        """Rank 0 writes the log."""
        if not self.mesh.is_first:
            return None
        return MetricsLog(self.run, start_step=self.step, total_steps=self.total_steps)

    def is_due(self, every: str | None) -> bool:
        """Whether the step just taken ends an interval."""
        return every is not None and self.step % self.steps(every) == 0

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step: forward and backward of every micro-batch, one update, one record."""
        start_s, lr = time.monotonic(), self.schedule(self.step)
        self.stream.wait_s = 0.0
        tally = Tally(rank=self.mesh.rank, world_size=self.mesh.dims.world_size)
        for _ in range(self.stream.grad_accum_steps):
            self.micro_step(self.next_batch(batches), lr, tally)
        totals = tally.reduce(self.stream.counts())
        self.stream.check_counts(totals.counts)
        self.model.balance(totals.loads)
        self.step += 1
        self.record(totals, lr, time.monotonic() - start_s)

    def record(self, totals: Totals, lr: float, step_s: float) -> None:
        """Write down the step just taken."""
        if self.log is None:
            return
        loss, aux_loss = totals.sums
        values = {
            "loss": loss / totals.passes,
            "aux_loss": aux_loss / totals.passes,
            "lr": lr,
            "grad_norm": self.engine.grad_norm,
            "images_s": self.config.train.global_batch_size / step_s,
            "data_wait_s": self.stream.wait_s,
            "dropped_fraction": totals.dropped_fraction,
        }
        table = self.is_due(self.config.train.moe_load_every) or self.step == self.total_steps
        self.log.step(self.step, values, totals.counts, totals.layers, table=table)

    def micro_step(self, batch: Batch, lr: float, tally: Tally) -> None:
        """Forward, loss, backward, and after the last micro-batch of a step the update."""
        keys = sample_keys(self.config.seed, batch.positions).to(self.device)
        images, targets = self.inputs(batch)
        output = self.engine(images, keys)
        loss = classification_loss(output.logits, targets, self.config.optim.label_smoothing)
        loss = loss + output.aux_loss
        self.engine.backward(loss)
        self.engine.step(lr)
        tally.add(torch.stack([loss, output.aux_loss]), output)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) float32, and labels (B,) or, of mixed images, probabilities (B, classes)."""
        if self.augment is None:
            return normalised(batch.images, self.config.data, self.device), batch.labels.to(self.device)
        images, targets = self.augment(batch.images, batch.labels, batch.positions)
        return images, targets.soft(self.config.model.num_classes)

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; what is wrong with the data is this rank's error."""
        try:
            return next(batches)
        except DataError as error:
            raise RankError(f"rank {self.mesh.rank}, step {self.step + 1}: {error}") from error

    def evaluate(self) -> None:
        """Evaluate on the validation split and record it."""
        result = evaluate(self.engine.module, self.val, self.config.data, self.device)
        if self.log:
            self.log.evaluation(self.step, result)

    def save(self) -> None:
        """Commit a checkpoint and drop the oldest."""
        record: dict[str, Any] = {
            "state": {"data": self.stream.state_dict()},
            "config": dump_config(self.config),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "deepspeed", "swin-moe")},
            },
        }
        checkpoint.save(self.run.checkpoints, self.step, self.masters, self.mesh, record)
        self.saved_step = self.step
        if self.mesh.is_first:
            prune(self.run.checkpoints, self.config.checkpoint.keep_last)
