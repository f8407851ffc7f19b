"""Feature distillation: the student's projected map against the map of a frozen teacher.

Legend: B images of H x W pixels, H' x W' tokens and C' channels of the teacher's map.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.joined import JoinedMetric
from launcher.metrics.metric import Metric
from launcher.metrics.neighbours import NeighbourMetric
from launcher.tasks.distill.metric import DistillMetric
from launcher.tasks.distill.options import DistillOptions
from launcher.tasks.frozen_teacher import build_teacher, teacher_source
from launcher.tasks.image_data import ImageTask
from launcher.tasks.spec import Stateful, StepOutput, TaskContext
from swin_moe.heads.distill import DistillOutput, build_distiller
from swin_moe.moe.overrides import RoutingOverrides

if TYPE_CHECKING:  # DeepSpeed, which checks of a configuration do not import
    from parallel.zero.engine import Engine
    from parallel.zero.master_weights import MasterWeights
    from parallel.zero.teacher import FrozenTeacher


def step(engine: Any, images: Tensor, keys: Tensor, target: Tensor) -> StepOutput:
    """The loss of images (B, 3, H, W) against the teacher's map (B, H', W', C')."""
    output = engine(images, keys, target)
    terms = {"cosine": output.cosine.mean().detach(), "target_spread": output.spread.mean().detach()}
    return StepOutput(loss=output.loss, terms=terms, moe=output.moe)


class DistillTask(ImageTask):
    """Training of an encoder by the maps of a frozen teacher: its predictions are of these maps."""

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        self.context, self.options = context, options_of(config, DistillOptions)
        self.source = teacher_source(config, self.options.teacher, "map")
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

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """Read when it is needed first, by all ranks together: features of the student need none."""
        return build_teacher(self.config, self.context, self.source, str(self.options.teacher.weights))

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Read the teacher's weights before the first step."""
        _ = self.teacher

    def state(self) -> dict[str, Stateful]:
        """The digest of the teacher."""
        return {"teacher": self.teacher}

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
