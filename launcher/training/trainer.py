"""One process's part of one session of a run: every step, evaluation and save from where the run stands."""

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.stream.train import EvalStream, TrainStream
from data_shards.stream.webdataset import WebDatasetStream
from data_shards.stream.workers import Batch
from launcher.config.load import dump_config
from launcher.config.schema import RunConfig
from launcher.errors import BadDataError, DivergedError, FinalSaveError, RankError, Stopped
from launcher.evaluation.loop import Evaluation, evaluate
from launcher.metrics.accumulator import Tally, Totals
from launcher.metrics.log import MetricsLog
from launcher.process.run_rank import Guard
from launcher.rundir.directory import RunDirectory
from launcher.rundir.versions import version_of
from launcher.tasks.param_groups import freeze, parameter_groups
from launcher.tasks.pretrained import start_from
from launcher.tasks.tasks import task_of
from launcher.training.ahead import Ahead
from launcher.training.builders import engine_options
from launcher.training.nonfinite import GradientSearch, SkippedSteps
from launcher.training.schedules import Schedule
from launcher.training.spikes import SpikeGuard
from launcher.validation.label_spaces import trained_classes
from launcher.validation.rules import steps_in
from parallel.checkpoint import load as checkpoint
from parallel.checkpoint.async_saver import Outcome, Saver
from parallel.checkpoint.commit import committed
from parallel.checkpoint.latest import newest
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from parallel.zero.engine import Engine
from parallel.zero.master_weights import Masters
from swin_moe.backbone.compile import compile_blocks
from swin_moe.random.keyed import sample_keys


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
        guard: Guard,
    ) -> None:
        self.guard, self.watch = guard, guard.watch
        self.config, self.run, self.mesh, self.device = config, run, mesh, device
        self.stream, self.val = stream, val
        self.task = task_of(config, device)
        parallel = config.parallel
        sharded = parallel.zero_stage == 3
        model = self.task.build(mesh, sharded=sharded, exchange=parallel.expert_exchange).to(device)
        self.backbone = self.task.backbone(model)
        if config.train.pretrained and not committed(run.checkpoints):
            start_from(config.train, self.backbone, mesh)
        frozen = freeze(model, config.optim.freeze)
        if frozen and mesh.is_first:
            print(f"frozen: {len(frozen)} of {len(list(model.parameters()))} tensors")
        if config.train.compile:
            compile_blocks(model)
        self.model = model
        self.spikes = SpikeGuard(config.train.spike_factor, config.train.spike_action)
        self.engine = Engine(
            model,
            parameter_groups(model, config.optim),
            mesh,
            engine_options(config, stream.grad_accum_steps),
            self.spikes.accepts if self.spikes.is_on else None,
        )
        self.masters = Masters(self.engine.deepspeed, config.train.ema_decay)
        keep = config.checkpoint
        self.saver = Saver(
            run.checkpoints,
            mesh,
            asynchronous=keep.asynchronous,
            keep_last=keep.keep_last,
            keep_every=self.steps(keep.keep_every) if keep.keep_every else None,
        )
        self.total_steps = self.steps(config.train.duration)
        self.schedule = Schedule(
            config.optim,
            global_batch_size=config.train.global_batch_size,
            total_steps=self.total_steps,
            steps=self.steps,
        )
        self.step = self.saved_step = 0
        self.last_save: Outcome | None = None
        self.skipped = SkippedSteps(config.train.max_skipped_steps)
        self.search = GradientSearch(model)
        self.evaluation_is_owed = False  # of the step at which an earlier session stopped

    def steps(self, duration: str) -> int:
        """Optimizer steps of a duration."""
        return steps_in(duration, self.config, self.stream.num_samples)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one."""
        found = newest(self.run.checkpoints)
        if found is None:
            return
        if self.mesh.is_first:
            sys.stderr.writelines(f"{notice}\n" for notice in found.notices)
        num_experts = self.config.model.moe.num_experts if self.config.model.moe else 0
        state = found.manifest["state"]
        self.stream.load_state_dict(state["data"])
        self.skipped.total = state.get("skipped_steps", 0)
        self.evaluation_is_owed = state.get("evaluation_is_owed", False)
        self.spikes.load_state_dict(state.get("spikes", self.spikes.state_dict()))
        checkpoint.load(found.path, self.masters, num_experts, found.manifest)
        anew = checkpoint.missing_kinds(self.masters, found.manifest)
        if anew and self.mesh.is_first:
            sys.stderr.write(f"{found.path} holds no {', '.join(anew)}: started anew\n")
        self.engine.load_state_dict(state.get("engine", {}))
        self.step = self.saved_step = found.manifest["step"]
        self.watch.beat(self.step)

    def train(self) -> None:
        """Take every step that is left; evaluate and save on the way and at the end."""
        self.log = self.open_log()
        self.engine.train()
        self.guard.note(total_steps=self.total_steps)
        batches = self.ahead = Ahead(self.stream, self.prepare)
        if self.evaluation_is_owed or (self.step == 0 and self.config.train.eval_first):
            self.evaluate()
        while self.step < self.total_steps:
            try:
                stopped_by = self.train_step(batches)
            except (DivergedError, BadDataError):  # on all ranks alike; the save under way is a good state
                with self.watch.phase("save"):
                    self.tell(self.saver.finish())
                raise
            self.tell(self.saver.poll())
            self.evaluation_is_owed = (
                self.is_due(self.config.train.eval_every) or self.step == self.total_steps
            )
            if stopped_by and self.step < self.total_steps:
                self.stop(stopped_by)
            if self.evaluation_is_owed:
                self.evaluate()  # before the save: a resumed run does not come back to this step
            if self.is_due(self.config.checkpoint.every):
                self.save()
        if self.saved_step != self.step:
            self.save()
        self.finish_saving()
        if self.log:
            self.log.close()

    def stop(self, ranks: list[int]) -> None:
        """Save at once and end the run, as these ranks were asked to; an evaluation has to wait.

        Raises:
            Stopped: on all ranks.
        """
        if self.saved_step != self.step:
            self.save()
        self.finish_saving()
        asked = self.guard.stop
        told = asked.signal.name if asked.signal else f"a signal to rank {', '.join(map(str, ranks))}"
        ago = f" {time.monotonic() - asked.since_s:.2f} s after it" if asked.signal else ""
        if self.log:
            self.log.close()
        raise Stopped(
            f"{told}: checkpoint of step {self.step} of {self.total_steps} committed{ago}; "
            "--resume auto goes on"
        )

    def open_log(self) -> MetricsLog | None:
        """Rank 0 writes the log."""
        if not self.mesh.is_first:
            return None
        return MetricsLog(self.run, start_step=self.step, total_steps=self.total_steps)

    def is_due(self, every: str | None) -> bool:
        """Whether the step just taken ends an interval."""
        return every is not None and self.step % self.steps(every) == 0

    def train_step(self, batches: Iterator[Batch]) -> list[int]:
        """One optimizer step: forward and backward of every micro-batch, one update, one record.

        Returns:
            The ranks that were asked to stop, the same on every rank.
        """
        start_s, lr = time.monotonic(), self.schedule(self.step)
        self.stream.wait_s = 0.0
        tally = Tally(rank=self.mesh.rank, world_size=self.mesh.dims.world_size)
        for _ in range(self.stream.grad_accum_steps):
            self.micro_step(self.next_batch(batches), lr, tally)
        flags = {"stop": self.guard.stop.is_there, "gradient": self.search.take()}
        totals = tally.reduce(self.ahead.counts(), flags)
        self.check_data(totals)
        if not self.engine.skipped:
            self.masters.average()
            self.backbone.balance(totals.loads)
        self.step += 1
        self.watch.begin(self.step)
        self.count_skipped(totals)
        self.record(totals, lr, time.monotonic() - start_s)
        return totals.raised["stop"]

    def check_data(self, totals: Totals) -> None:
        """Too many bad samples on all ranks together end the run."""
        try:
            self.stream.check_counts(totals.counts)
        except DataError as error:
            raise BadDataError(str(error)) from error

    def count_skipped(self, totals: Totals) -> None:
        """Take note of a step that was not finite, and seek the rank whose gradient it is."""
        found = (
            f", and then in the gradient of rank {', '.join(map(str, bad))}"
            if (bad := totals.raised["gradient"])
            else ""
        )
        if (spike := self.spikes.take()) and self.log:
            done = "skipped" if self.engine.skipped else "taken"
            self.log.notice(f"step {self.step}: {spike}: {done}")
        self.skipped.count(self.step, self.engine.skipped, totals.raised["nonfinite"], found, spike)
        self.search.turn(self.skipped.in_trouble)

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
            "skipped_steps": float(self.skipped.total),
            "spikes": float(self.spikes.total),
        }
        table = self.is_due(self.config.train.moe_load_every) or self.step == self.total_steps
        self.log.step(self.step, values, totals.counts, totals.layers, table=table)
        self.guard.note(loss=values["loss"], images_s=values["images_s"])

    def micro_step(self, batch: Batch, lr: float, tally: Tally) -> None:
        """Forward, loss, backward, and after the last micro-batch of a step the update."""
        inputs, keys = self.ahead.inputs(batch)
        loss, output = self.task.loss(self.engine, inputs, keys)
        loss = loss + output.aux_loss
        self.engine.backward(loss)
        if self.looks_ahead():
            with self.data_phase():
                self.ahead.look()
        self.engine.step(lr)
        self.watch.beat()
        tally.add(torch.stack([loss, output.aux_loss]), output)

    def looks_ahead(self) -> bool:
        """Whether to make the next step's first inputs now: on a GPU, where the host is about to wait."""
        return self.device.type == "cuda" and self.engine.ends_step and self.step + 1 < self.total_steps

    def prepare(self, batch: Batch) -> tuple[Any, Tensor]:
        """The task's inputs of a batch, on the device, and the keys of its samples."""
        return self.task.inputs(batch), send(sample_keys(self.config.seed, batch.positions), self.device)

    def data_phase(self) -> AbstractContextManager[None]:
        """What waits for data may take as long as they are tried again."""
        return self.watch.phase("data", self.watch.timeout_s + self.config.data.retry_s)

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; what is wrong with the data is this rank's error."""
        try:
            with self.data_phase():
                return next(batches)
        except DataError as error:
            raise RankError(f"rank {self.mesh.rank}, step {self.step + 1}: {error}") from error

    def evaluate(self) -> None:
        """Evaluate on the validation split, the moving average too where there is one, and record it."""
        with self.watch.phase("evaluation"):
            found = self.evaluated()
        averaged: dict[str, Any] = {}
        if self.config.train.ema_decay:
            with self.watch.phase("evaluation"), self.masters.averaged():
                averaged = self.evaluated().figures
        self.evaluation_is_owed = False
        if self.log is None:
            return
        self.log.evaluation(self.step, found.figures, self.task.line(found.figures))
        if averaged:
            self.log.evaluation(self.step, averaged, f"average: {self.task.line(averaged)}", "eval_ema_")
        if found.picture is not None:
            self.log.picture(self.step, found.picture)

    def evaluated(self) -> Evaluation:
        """Evaluate the weights that the model computes with now."""
        config, model = self.config, self.engine.module
        return evaluate(model, self.val, self.task, config.data, self.device, self.watch.beat)

    def save(self) -> None:
        """Save a checkpoint beside training, or, not asynchronous, before going on; see `tell`."""
        record: dict[str, Any] = {
            "state": {
                "data": self.ahead.state_dict(),
                "engine": self.engine.state_dict(),
                "skipped_steps": self.skipped.total,
                "spikes": self.spikes.state_dict(),
                "evaluation_is_owed": self.evaluation_is_owed,
            },
            "config": dump_config(self.config),
            "val_manifest": self.val.manifest.digest,
            "classes": trained_classes(self.config, self.stream.classes, self.val.classes),
            "versions": {
                "python": platform.python_version(),
                **{name: version_of(name) for name in ("torch", "deepspeed", "swin-moe")},
            },
        }
        with self.watch.phase("save"):
            self.saver.start(self.step, self.masters, record)
        self.saved_step = self.step

    def tell(self, outcomes: list[Outcome]) -> None:
        """Record how saves ended; one that failed does not stop the run."""
        for outcome in outcomes:
            self.last_save = outcome
            if self.log:
                self.log.save(outcome)

    def finish_saving(self) -> None:
        """Wait for the save that no other follows.

        Raises:
            FinalSaveError: it failed; what was trained since the one before would be lost silently.
        """
        with self.watch.phase("save"):
            self.tell(self.saver.finish())
        if self.last_save is not None and self.last_save.error is not None:
            raise FinalSaveError(f"the state of step {self.step} is lost: {self.last_save.error}")
