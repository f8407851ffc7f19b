"""Feature distillation: the student's projected map against the map of a frozen teacher.

Legend: B images of H x W pixels, H' x W' tokens and C' channels of the teacher's map.
"""

from typing import Any

from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.joined import JoinedMetric
from launcher.metrics.metric import Metric
from launcher.metrics.neighbours import NeighbourMetric
from launcher.tasks.distill.metric import DistillMetric
from launcher.tasks.distill.options import DistillOptions
from launcher.tasks.spec import StepOutput, TaskContext
from launcher.tasks.taught_task import TaughtTask
from swin_moe.heads.distill import DistillOutput, build_distiller
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.teachers.options import TeacherConfig


def step(engine: Any, images: Tensor, keys: Tensor, target: Tensor) -> StepOutput:
    """The loss of images (B, 3, H, W) against the teacher's map (B, H', W', C')."""
    output = engine(images, keys, target)
    terms = {"cosine": output.cosine.mean().detach(), "target_spread": output.spread.mean().detach()}
    return StepOutput(loss=output.loss, terms=terms, moe=output.moe)


class DistillTask(TaughtTask):
    """Training of an encoder by the maps of a frozen teacher: its predictions are of these maps."""

    wanted = "map"

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        self.options = options_of(config, DistillOptions)
        self.model: nn.Module = build_distiller(
            config.model,
            self.options,
            self.source.spec.width,
            self.source.spec.grid,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(context.device)

    @property
    def teacher_options(self) -> TeacherConfig:
        """Of the section of the task; features of the student alone need none."""
        return self.options.teacher

    def inputs(self, batch: Batch) -> Tensor:
        """Images (B, 3, H, W) float32."""
        return self.eval_inputs(batch)

    def step(self, engine: Any, inputs: Tensor, keys: Tensor) -> StepOutput:
        """The loss of a micro-batch."""
        return step(engine, inputs, keys, self.teacher(inputs))

    def predict(
        self, model: nn.Module, inputs: Tensor, keys: Tensor, call: RoutingOverrides
    ) -> DistillOutput:
        """The error of each image and the student's features."""
        output: DistillOutput = model(inputs, keys, self.teacher(inputs), call)
        return output

    def metric(self) -> Metric:
        """The loss on the split, and the neighbours of the student's features."""
        return JoinedMetric(DistillMetric(self.device), NeighbourMetric(self.device))
