"""Training on one rank: optimizer steps, and the evaluations and saves between them.

`Trainer.train` is the loop, `Trainer.train_step` is one optimizer step. `builders.build_trainer` makes it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.stream.base import TrainingStream
from data_shards.stream.batch import Batch
from data_shards.stream.eval import EvalStream
from launcher.config.load import dump_config
from launcher.config.schema import RunConfig
from launcher.errors import BadDataError, DivergedError, FinalSaveError, RankError, Stopped
from launcher.evaluation.loop import Evaluated, Evaluation
from launcher.evaluation.sets import evaluate_sets, line_of_sets
from launcher.metrics.accumulator import MetricAccumulator, Totals
from launcher.metrics.log import MetricsLog
from launcher.metrics.trackers.base import Status
from launcher.process.run_rank import RankContext
from launcher.rundir.directory import RunDirectory
from launcher.tasks.spec import Task
from launcher.training.input_prefetch import InputPrefetcher
from launcher.training.nonfinite import GradientSearch, SkippedSteps
from launcher.training.profiler import StepProfiler
from launcher.training.schedules import Schedule
from launcher.training.scores import ScoreBoard, annotate_evaluation, restore
from launcher.training.spikes import SpikeGuard
from launcher.validation.label_spaces import trained_classes
from parallel.checkpoint.async_saver import CheckpointSaver, SaveResult
from parallel.checkpoint.latest import IntactCheckpoint, latest_intact
from parallel.checkpoint.load import load_checkpoint, missing_kinds
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from parallel.versions import version_record
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from swin_moe.backbone.backbone import Backbone
from swin_moe.random.keyed import sample_keys

logger = logging.getLogger(__name__)

LOSSES = 3  # loss, aux_loss, total_loss: a term of the task may be NaN, as a mean over nothing is
Event = Literal["start", "step", "evaluate", "save", "end"]
Hook = Callable[[Event, "Trainer"], None]  # called before what the event names, and at the end of training


@dataclass(kw_only=True, eq=False)
class Trainer:
    """One rank's part of one session of a run, from the newest checkpoint to the end of the run."""

    config: RunConfig
    run: RunDirectory
    mesh: Mesh
    device: torch.device
    context: RankContext
    stream: TrainingStream
    val: Mapping[str, EvalStream]  # by name, the one that runs are compared by first; none: no evaluation
    task: Task
    backbone: Backbone
    engine: Engine
    masters: MasterWeights
    saver: CheckpointSaver
    schedule: Schedule
    spikes: SpikeGuard
    profiler: StepProfiler
    skipped: SkippedSteps
    board: ScoreBoard
    gradient_search: GradientSearch
    steps: Callable[[str], int]  # optimizer steps of a duration
    total_steps: int
    prefetch_inputs: bool  # make the next step's inputs before the optimizer's step, where the host waits

    step: int = 0  # optimizer steps done
    saved_step: int = 0
    last_save: SaveResult | None = None
    evaluation_is_due: bool = False  # of the current step
    batches: InputPrefetcher = field(init=False)
    log: MetricsLog | None = field(init=False, default=None)  # on rank 0

    def __post_init__(self) -> None:
        self.watch = self.context.watch
        self.hook: Hook = self.context.runtime.hook

    def train(self) -> None:
        """Take every step that is left; evaluate and save on the way and at the end."""
        self.batches = InputPrefetcher(self.stream, self.prepare)
        self.hook("start", self)
        if self.mesh.is_first and not self.is_finished:
            self.log = self.context.log = MetricsLog(
                self.run,
                self.config,
                num_samples=self.stream.num_samples,
                start_step=self.step,
                total_steps=self.total_steps,
            )
        self.context.note(total_steps=self.total_steps)
        self.engine.train()
        if self.evaluation_is_due or (self.step == 0 and self.config.train.eval_first):
            self.evaluate()
            if self.saved_step == self.step > 0:  # by an earlier session
                annotate_evaluation(self.board, self.run.checkpoints, self.step, is_first=self.mesh.is_first)
        while self.step < self.total_steps and not self.board.stop_reason:
            self.hook("step", self)
            try:
                with self.profiler.step(self.step + 1):
                    stopped_by = self.train_step()
            except (DivergedError, BadDataError):  # on all ranks alike; the save under way is a good state
                self.record_saves(finish=True)
                raise
            self.record_saves()
            if self.profiler.is_due:
                self.write_profile()
            self.evaluation_is_due = self.ends_interval(self.config.train.eval_every)
            if stopped_by and self.step < self.total_steps:
                self.stop(stopped_by)
            if self.evaluation_is_due:
                self.evaluate()  # before the save: a resumed run does not come back to this step
            if self.is_due(self.config.checkpoint.every) or self.board.is_among_the_best(self.step):
                self.save()
        if self.stopped_early:
            self.context.note(total_steps=self.step)
            self.context.ending = f"finished: {self.stopped_early}"
            if self.log:
                self.log.notice(self.stopped_early)
        self.write_profile()  # of a run that stopped early
        self.finish_saving()
        self.close_log("finished")
        self.hook("end", self)

    def train_step(self) -> list[int]:
        """Take one optimizer step.

        Returns:
            The ranks on which a stop was requested, the same list on every rank.

        Raises:
            RankError: this rank's data cannot be read.
            BadDataError, DivergedError: on all ranks; too many bad samples, too many steps without an update.
        """
        start_s, lr = time.monotonic(), self.schedule(self.step)
        self.stream.wait_s, region = 0.0, self.profiler.region
        metrics = MetricAccumulator(rank=self.mesh.rank, world_size=self.mesh.dims.world_size, watched=LOSSES)

        for _ in range(self.stream.grad_accum_steps):
            # Fetch: this rank's next micro-batch. Its inputs may have been made before the last update.
            with self.waiting_for_data(), region("fetch"):
                batch = next(self.batches)
            with region("inputs"):
                inputs, keys = self.batches.inputs(batch)

            # Forward and backward. The last backward pass of a step reduces the gradients over the ranks.
            with region("forward"):
                output = self.task.step(self.engine, inputs, keys)
                aux_loss = output.aux_loss
                total_loss = output.loss + aux_loss
            with region("backward"):
                self.engine.backward(total_loss)

            # On a GPU, enqueue the next step's inputs now: the host waits inside the update.
            if self.prefetch_inputs and self.engine.ends_step and self.step + 1 < self.total_steps:
                with self.waiting_for_data(), region("prefetch"):
                    self.batches.prefetch()

            # Clip and update the weights, after the last micro-batch. A gradient that is not finite skips it.
            with region("optimizer"):
                self.engine.step(lr)
            self.watch.beat()
            losses = {"loss": output.loss, "aux_loss": aux_loss, "total_loss": total_loss}
            metrics.add(losses | output.terms, output.moe)

        # Sum the metrics of all micro-batches and ranks: one all-reduce, and one wait for the device.
        flags = {"stop": self.context.stop.is_set, "gradient": self.gradient_search.take()}
        with region("metrics"):
            totals = metrics.reduce(self.batches.counts(), flags)
        self.check_data(totals)

        # Average the weights and move the routers' biases, unless the update was skipped.
        if not self.engine.skipped:
            self.masters.update_ema(self.step + 1)
            self.backbone.update_router_bias(totals.loads)
        self.step += 1
        self.task.after_step(self.step, self.engine.skipped)

        # Record.
        self.watch.begin(self.step)
        self.count_skipped(totals)
        self.log_step(totals, lr, time.monotonic() - start_s)
        return totals.raised["stop"]

    def prepare(self, batch: Batch) -> tuple[Any, Tensor]:
        """The task's inputs of a batch, on the device, and the keys of its samples."""
        return self.task.inputs(batch), send(sample_keys(self.config.seed, batch.positions), self.device)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Allow for the retries of storage, and name the rank whose data cannot be read."""
        try:
            with self.watch.phase("data", self.watch.timeout_s + self.config.data.retry_s):
                yield
        except DataError as error:
            raise RankError(f"rank {self.mesh.rank}, step {self.step + 1}: {error}") from error

    def check_data(self, totals: Totals) -> None:
        """End the run, on all ranks alike, after too many bad samples."""
        try:
            self.stream.check_counts(totals.counts)
        except DataError as error:
            raise BadDataError(str(error)) from error

    def count_skipped(self, totals: Totals) -> None:
        """Count a step that was skipped or not finite, and search for the rank with the bad gradient."""
        spike = self.spikes.take()
        if spike and self.log:
            self.log.notice(f"step {self.step}: {spike}: {'skipped' if self.engine.skipped else 'taken'}")
        self.skipped.count(
            self.step,
            self.engine.skipped,
            loss_ranks=totals.raised["nonfinite"],
            gradient_ranks=totals.raised["gradient"],
            spike=spike,
        )
        self.gradient_search.turn(self.skipped.in_trouble)

    def log_step(self, totals: Totals, lr: float, step_s: float) -> None:
        """Record the metrics of the last step, on rank 0."""
        if self.log is None:
            return
        values = totals.means() | {
            "lr": lr,
            "grad_norm": self.engine.grad_norm,
            "images_s": self.config.train.global_batch_size / step_s,
            "data_wait_s": self.stream.wait_s,
            "dropped_fraction": totals.dropped_fraction,
            "skipped_steps": float(self.skipped.total),
            "spikes": float(self.spikes.total),
        }
        table = self.ends_interval(self.config.train.moe_load_every)
        self.log.step(self.step, values, totals.counts, totals.layers, table=table)
        self.context.note(loss=values["loss"], images_s=values["images_s"])

    def is_due(self, every: str | None) -> bool:
        """Whether the last step ends an interval."""
        return every is not None and self.step % self.steps(every) == 0

    def ends_interval(self, every: str | None) -> bool:
        """Whether the last step ends an interval, or the run."""
        return self.is_due(every) or self.step == self.total_steps

    def stop(self, ranks: list[int]) -> None:
        """Save at once and end the run; an evaluation that is due follows after the resume.

        Args:
            ranks: on which a stop was requested.

        Raises:
            Stopped: on all ranks.
        """
        self.finish_saving()
        self.write_profile()
        self.close_log("stopped")
        request = self.context.stop
        cause = request.signal.name if request.signal else f"a signal to rank {', '.join(map(str, ranks))}"
        duration = f" in {time.monotonic() - request.since_s:.2f} s" if request.signal else ""
        raise Stopped(
            f"on request ({cause}) at step {self.step} of {self.total_steps}, saved{duration}; "
            "continue with --resume auto"
        )

    def write_profile(self) -> None:
        """Write what was recorded of the last steps, if anything; other ranks wait in the next collective."""
        with self.watch.phase("profile"):
            self.profiler.write()

    def close_log(self, status: Status) -> None:
        """Finish the log; other ends of a session close it in `launcher/process/run_rank.py`."""
        if self.log:
            with self.watch.phase("trackers", self.watch.timeout_s + self.config.tracking.end_timeout_s):
                self.log.close(status)

    def evaluate(self) -> None:
        """Evaluate the weights on the validation sets, if any, and their moving average if there is one."""
        self.evaluation_is_due = False
        if not self.val:
            return
        self.hook("evaluate", self)
        with self.watch.phase("evaluation"):
            result, averaged = self.evaluate_weights(), None
        if self.config.train.ema_decay:
            with self.watch.phase("evaluation"), self.masters.ema_applied():
                averaged = self.evaluate_weights()
        self.board.add(self.step, (averaged or result).metrics)
        if self.config.checkpoint.keep_best:  # every rank has to know of the same checkpoints
            self.record_saves(finish=True)
        if self.log is None:
            return
        line = partial(line_of_sets, self.task.metric(), names=[*self.val])
        self.log.evaluation(self.step, result.metrics, line(result.metrics))
        if averaged:
            text = f"average: {line(averaged.metrics)}"
            self.log.evaluation(self.step, averaged.metrics, text, "eval_ema_")
        if result.image is not None:
            self.log.image(self.step, result.image)

    def evaluate_weights(self) -> Evaluation:
        """Evaluate the weights that the model computes with now, on every validation set."""
        evaluated = Evaluated(
            model=self.engine.module,
            task=self.task,
            device=self.device,
            heartbeat=self.watch.beat,
        )
        return evaluate_sets(evaluated, self.val)

    @property
    def stopped_early(self) -> str | None:
        """Where and why training stopped before its last step, if it did."""
        reason = self.board.stop_reason if self.step < self.total_steps else None
        return reason and f"stopped early at step {self.step} of {self.total_steps}: {reason}"

    @property
    def is_finished(self) -> bool:
        """Whether every step is taken, or training stopped early, and evaluated where that is due."""
        is_over = self.step >= self.total_steps or self.stopped_early is not None
        return is_over and not self.evaluation_is_due

    def resume(self) -> IntactCheckpoint | None:
        """Continue from the newest complete checkpoint, and return it, if there is one."""
        checkpoint = latest_intact(self.run.checkpoints)
        if checkpoint is None:
            return None
        path, manifest = checkpoint.path, checkpoint.manifest
        if self.mesh.is_first:
            for notice in checkpoint.notices:
                logger.warning("%s", notice)
        num_experts = self.config.model.moe.num_experts if self.config.model.moe else 0
        state = manifest["state"]
        self.stream.load_state_dict(state["data"])
        self.skipped.total = state.get("skipped_steps", 0)
        self.evaluation_is_due = state.get("evaluation_is_owed", False)
        self.spikes.load_state_dict(state.get("spikes", self.spikes.state_dict()))
        load_checkpoint(path, self.masters, num_experts, manifest, state=self.task.tensors())
        for name, kept in self.task.state().items():
            kept.load_state_dict(state.get("task", {}).get(name, {}))
        missing = missing_kinds(self.masters, manifest)
        if missing and self.mesh.is_first:
            logger.warning("%s holds no %s: started anew", path, ", ".join(missing))
        self.engine.load_state_dict(state.get("engine", {}))
        restore(self.board, self.run.checkpoints, manifest, is_first=self.mesh.is_first)
        self.step = self.saved_step = manifest["step"]
        self.watch.beat(self.step)
        return checkpoint

    def save(self) -> None:
        """Start a save, which goes on beside training; without `checkpoint.asynchronous`, save now."""
        self.hook("save", self)
        self.record_saves(finish=True)  # one save at a time; a failed one is not among the best
        self.board.saves(self.step)
        record: dict[str, Any] = {
            "state": {
                "data": self.batches.state_dict(),
                "engine": self.engine.state_dict(),
                "skipped_steps": self.skipped.total,
                "spikes": self.spikes.state_dict(),
                "evaluation_is_owed": self.evaluation_is_due,
                "evaluations": self.board.scores.record,
                "task": {name: kept.state_dict() for name, kept in self.task.state().items()},
            },
            "evaluation": self.board.value_of(self.step),
            "config": dump_config(self.config),
            "val_manifests": {
                option: one.manifest.digest
                for option, one in zip(self.config.data.val_places, self.val.values(), strict=True)
            },
            "classes": trained_classes(
                self.config, self.stream.classes, next((val.classes for val in self.val.values()), None)
            ),
            "versions": version_record("torch", "deepspeed", "swin-moe"),
        }
        with self.watch.phase("save"):
            self.saver.start(self.step, self.masters, record, self.task.tensors(), self.board.best)
        self.saved_step = self.step

    def record_saves(self, *, finish: bool = False) -> None:
        """Record the saves that have ended; with `finish`, wait for the one under way.

        A save that failed does not stop the run.
        """
        if finish:
            with self.watch.phase("save"):
                outcomes = self.saver.finish()
        else:
            outcomes = self.saver.poll()
        for outcome in outcomes:
            self.last_save = outcome
            if outcome.error is not None:
                self.board.failed(outcome.step)
            if self.log:
                self.log.save(outcome)

    def finish_saving(self) -> None:
        """Save the last step, unless that is done, and wait for the save.

        Raises:
            FinalSaveError: it failed, and the steps since the save before it would be lost silently.
        """
        if self.saved_step != self.step:
            self.save()
        self.record_saves(finish=True)
        if self.last_save is not None and self.last_save.error is not None:
            raise FinalSaveError(f"the state of step {self.step} is lost: {self.last_save.error}")
