"""The student's prediction of each view is drawn to the teacher's projection of the other, less a centre.

Legend: B samples, V views of each, D width of the projections, N points of all samples together.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.metric import Metric
from launcher.tasks.image_data import ImageTask, normalize_images
from launcher.tasks.spec import Stateful, StepOutput, TaskContext
from parallel.ranks.collectives import sum_over
from parallel.ranks.host import send
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from parallel.zero.persistent_state import PersistentState
from parallel.zero.teacher import MovingAverageTeacher
from swin_moe.backbone.model import construct
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import fold_in
from tests.toy_task.data import sample_of_points
from tests.toy_task.metric import NearestNeighbour
from tests.toy_task.model import Toy, ToyOutput
from tests.toy_task.options import ToyOptions

VIEW_SITE = -7  # of the keys of the second view


class ToyInputs(NamedTuple):
    """A micro-batch on the device."""

    images: Tensor  # (2 B, 3, H, W) the first views of all samples, then the second
    points: Tensor  # (N, 2)
    sample: Tensor  # (N,) of each point


def keys_of_views(keys: Tensor, views: int) -> Tensor:
    """The keys (V, B) of each view; those of the first are the samples'."""
    return torch.stack([keys, *(fold_in(keys, VIEW_SITE - view) for view in range(views - 1))])


def student_step(
    config: RunConfig, engine: Any, inputs: ToyInputs, keys: Tensor, target: Tensor
) -> StepOutput:
    """The student's part of a step, towards targets (2 B, D) of both views."""
    output: ToyOutput = engine(inputs.images, keys_of_views(keys, 2).flatten())
    count = len(keys)
    crossed = torch.cat([target[count:], target[:count]])
    distance = (output.prediction.float() - crossed).square().mean()
    points = _points_error(output.centroid[:count].float(), inputs)
    return StepOutput(
        loss=distance + options_of(config, ToyOptions).points_weight * points,
        terms={"distance": distance, "points": points},
        moe=output.moe,
    )


def _points_error(centroid: Tensor, inputs: ToyInputs) -> Tensor:
    """The distance of each sample's points from its centroid: the mean over its points, then samples.

    A sample without points has none.
    """
    errors = (inputs.points - centroid[inputs.sample]).square().sum(1)
    sums, counts = (centroid.new_zeros(len(centroid)) for _ in range(2))
    sums = sums.index_add(0, inputs.sample, errors)
    counts = counts.index_add(0, inputs.sample, torch.ones_like(errors))
    return (sums / counts.clamp_min(1)).mean()


class ToyTask(ImageTask):
    """Self-distillation with a centre, and a regression of points."""

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        self.context = context
        self.options = options_of(config, ToyOptions)
        self.model: nn.Module = self._make(sharded=context.sharded)
        width = self.options.width
        self.kept = PersistentState(
            {
                "centre": torch.zeros(width, device=self.device),
                "samples": torch.zeros((), dtype=torch.int64, device=self.device),
            }
        )
        self._sum = torch.zeros(width + 1, dtype=torch.float64, device=self.device)  # of projections, and 1
        self.teacher: MovingAverageTeacher | None = None

    def _make(self, *, sharded: bool) -> Toy:
        config, context = self.config, self.context
        return construct(
            lambda model, experts: Toy(model, self.options.width, experts),
            config.model,
            seed=config.seed,
            mesh=context.mesh,
            sharded=sharded,
            exchange=context.exchange,
        ).to(self.device)

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        module = self._make(sharded=False)
        self.teacher = MovingAverageTeacher(module, engine, masters, lambda step: self.options.momentum)

    def inputs(self, batch: Batch) -> ToyInputs:
        images = batch["views"].transpose(0, 1).flatten(0, 1)
        points, sample = (send(tensor, self.device) for tensor in (batch["points"], sample_of_points(batch)))
        return ToyInputs(normalize_images(images, self.config.data, self.device), points, sample)

    def step(self, engine: Any, inputs: ToyInputs, keys: Tensor) -> StepOutput:
        assert self.teacher is not None
        target = self.teacher(inputs.images, keys_of_views(keys, 2).flatten()).projection.float()
        self._sum += torch.cat([target.double().sum(0), target.new_full((1,), len(target)).double()])
        return student_step(self.config, engine, inputs, keys, target - self.kept["centre"])

    def after_step(self, step: int, skipped: bool) -> None:
        """Move the teacher and the centre, by the samples of all ranks."""
        assert self.teacher is not None
        self.teacher.update(step)
        total = sum_over(self._sum.clone())
        self._sum.zero_()
        if not skipped:
            momentum, centre = self.options.momentum, self.kept["centre"]
            centre.mul_(momentum).add_((total[:-1] / total[-1]).float(), alpha=1 - momentum)
            self.kept["samples"].add_(total[-1].long() // 2)

    def state(self) -> Mapping[str, Stateful]:
        return {"teacher": self.teacher} if self.teacher else {}

    def tensors(self) -> Mapping[str, Tensor]:
        return self.kept

    def eval_inputs(self, batch: Batch) -> Tensor:
        """The views of each sample side by side: (B V, 3, H, W) float32."""
        return normalize_images(batch["views"].flatten(0, 1), self.config.data, self.device)

    def predict(self, model: nn.Module, inputs: Tensor, keys: Tensor, call: RoutingOverrides) -> ToyOutput:
        """What the heads say of the views of a sample, averaged."""
        views = len(inputs) // len(keys)
        output: ToyOutput = model(inputs, keys_of_views(keys, views).T.flatten(), call)
        means = (each.unflatten(0, (-1, views)).mean(1) for each in output[:3])
        return ToyOutput(*means, moe={name: stats.by_sample(views) for name, stats in output.moe.items()})

    def metric(self) -> Metric:
        return NearestNeighbour()
