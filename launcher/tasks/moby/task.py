"""MoBY: contrastive pre-training with a moving average of the network as the target.

Legend: V views of a sample, two in training; B samples of H x W pixels; K keys of a queue, of D channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_shards.augment.view_augment import ViewAugment
from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.joined import JoinedMetric
from launcher.metrics.metric import Metric
from launcher.metrics.neighbours import NeighbourMetric
from launcher.tasks.image_data import ViewInputs, normalize_images
from launcher.tasks.moby.metric import MoBYPrediction, ViewAgreement
from launcher.tasks.moby.options import VIEWS, MoBYOptions
from launcher.tasks.moby.queues import KeyQueues
from launcher.tasks.norm_task import NormTask
from launcher.tasks.spec import Stateful, StepOutput, TaskContext
from parallel.ranks.host import send
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from parallel.zero.teacher import MovingAverageTeacher
from swin_moe.heads.moby import (
    Embeddings,
    build_moby,
    build_target,
    contrastive_loss,
)
from swin_moe.moe.overrides import RoutingOverrides

EVAL_SEED = 0  # of the views of an evaluation, which are the same for every run


class TrainInputs(NamedTuple):
    """A micro-batch on the device."""

    views: tuple[Tensor, ...]  # V of (B, 3, H, W) float32
    positions: Tensor  # (B,) int64 of the samples in the stream


def online_step(
    options: MoBYOptions, engine: Any, views: Sequence[Tensor], keys: Tensor, targets: Tensor, queues: Tensor
) -> StepOutput:
    """The online network's part of a step.

    Args:
        options: of the task.
        engine: called as its model.
        views: two of (B, 3, H, W).
        keys: (B,) of the samples' draws.
        targets: (2, B, D) unit keys of the target network.
        queues: (2, K, D) unit keys of earlier samples.
    """
    output: Embeddings = engine(views, keys)
    found = contrastive_loss(output.values, targets, queues, options.temperature)
    terms = {
        "positive_cosine": found.positive,
        "negative_cosine": found.negative,
        "spread": found.spread,
    }
    return StepOutput(loss=found.loss, terms=terms, moe=output.moe)


def momentum_at(start: float, step: int, total_steps: int, end: float = 1.0) -> float:
    """m of target = m * target + (1 - m) * online after the step of this number, counted from 1.

    m = end - (end - start) (1 + cos(pi k / K)) / 2: `start` before the first step, `end` at the last one and
    after it (the released code lets it fall again, and begins anew when a run is resumed).
    """
    progress = min(step / total_steps, 1.0) if total_steps else 1.0
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2


class Progress:
    """The optimizer steps taken, which a checkpoint keeps."""

    step = 0

    def state_dict(self) -> dict[str, Any]:
        """The steps."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many steps."""
        self.step = state.get("step", 0)


class MoBYTask(NormTask):
    """Training of an encoder by MoBY: its predictions are the pooled features of views.

    Args:
        config: of the run.
        context: of this rank.
    """

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        self.options, self.context, data = options_of(config, MoBYOptions), context, config.data
        self.device = context.device
        model = build_moby(
            config.model,
            self.options.head,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(self.device)
        super().__init__(config, context.mesh, model)
        self.queues = KeyQueues(
            self.options.queue,
            self.options.head.out_dim,
            views=VIEWS,
            seed=config.seed,
            device=self.device,
        )
        self.progress = Progress()
        self.target: MovingAverageTeacher | None = None
        self.augment, self.eval_augment = (
            ViewAugment(self.options.colours, seed=seed, mean=data.mean, std=data.std, device=self.device)
            for seed in (config.seed, EVAL_SEED)
        )

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Make the target network, whose batch norms have the ranks of the online network's."""
        super().attach(engine, masters)
        module = build_target(
            self.config.model,
            self.options.head,
            seed=self.config.seed,
            mesh=self.mesh,
            exchange=self.context.exchange,
        ).to(self.device)
        self.span_ranks(module)
        self.target = MovingAverageTeacher(module, engine, masters, self.momentum)

    def momentum(self, step: int) -> float:
        """That of the target network after a step, counted from 1."""
        options = self.options
        return momentum_at(options.momentum, step, self.context.total_steps, options.momentum_end)

    def inputs(self, batch: Batch) -> TrainInputs:
        """Two views of each sample, by draws of its position."""
        views = self.augment(batch["image"], batch.positions)
        return TrainInputs(views, send(batch.positions, self.device))

    def step(self, engine: Any, inputs: TrainInputs, keys: Tensor) -> StepOutput:
        """The loss against the queues of the step's start; the keys of the target network are kept."""
        targets = self.keys_of(inputs.views, keys)
        output = online_step(self.options, engine, inputs.views, keys, targets, self.queues.keys)
        self.queues.keep(targets, inputs.positions)
        return output._replace(terms=output.terms | self.progress_terms())

    def keys_of(self, views: Sequence[Tensor], keys: Tensor) -> Tensor:
        """What the target network says of views: (V, B, D) unit keys, fp32."""
        assert self.target is not None
        projections: Embeddings = self.target(views, keys)
        return nn.functional.normalize(projections.values.float(), dim=-1)

    def progress_terms(self) -> dict[str, Tensor]:
        """The momentum of this step's update, and the age of the queues in steps."""
        momentum = self.momentum(self.progress.step + 1)
        return {
            "momentum": torch.full((), momentum, device=self.device),
            "queue_age": self.queues.age(self.config.train.global_batch_size),
        }

    def after_step(self, step: int, skipped: bool) -> None:
        """Move the target network and the queues; a skipped step moves neither."""
        assert self.target is not None
        self.target.update(step)
        self.queues.end_step(skipped=skipped)
        self.progress.step = step

    def state(self) -> Mapping[str, Stateful]:
        """The target network, whose weights are kept with the masters, and the steps taken."""
        return {"target": self.target, "progress": self.progress} if self.target else {}

    def tensors(self) -> Mapping[str, Tensor]:
        """The queues, and the number of keys that they got."""
        return self.queues.state

    def eval_inputs(self, batch: Batch) -> ViewInputs:
        """The centres of the images without a change of colours, and further views as in training."""
        first, *others = batch["image"].unbind(1)
        centres = normalize_images(first, self.config.data, self.device)
        further = (
            self.eval_augment.view(images, batch.positions, view)
            for view, images in enumerate(others, start=1)
        )
        return ViewInputs((centres, *further))

    def predict(
        self, model: nn.Module, inputs: ViewInputs, keys: Tensor, call: RoutingOverrides
    ) -> MoBYPrediction:
        """The pooled features of the views."""
        output: Embeddings = model(inputs.views, keys, call, True)
        features, *others = output.values.unbind()
        return MoBYPrediction(features, others[0] if others else None, output.moe)

    def metric(self) -> Metric:
        """k-NN inside of the split, and the agreement of two views."""
        return JoinedMetric(NeighbourMetric(self.device), ViewAgreement(self.device))

    def visualize(self, model: nn.Module, inputs: ViewInputs, prediction: MoBYPrediction) -> Tensor | None:
        """One column an image, its views one below the other."""
        if not self.options.pictures:
            return None
        data = self.config.data
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (data.mean, data.std))
        rows = (torch.cat([*images[: self.options.pictures]], dim=2) * std + mean for images in inputs.views)
        return torch.cat([row.clamp(0, 1) for row in rows], dim=1)
