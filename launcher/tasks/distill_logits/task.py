"""Logit distillation: soft targets of a frozen teacher, beside the labels.

Legend: B images of H x W pixels, K classes.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.class_loss import class_loss
from launcher.tasks.classification.task import ClassificationTask
from launcher.tasks.distill_logits.options import LogitOptions
from launcher.tasks.frozen_teacher import build_teacher, teacher_source
from launcher.tasks.spec import Stateful, StepOutput, TaskContext
from swin_moe.heads.distill import soft_target_loss

if TYPE_CHECKING:  # DeepSpeed, which checks of a configuration do not import
    from parallel.zero.engine import Engine
    from parallel.zero.master_weights import MasterWeights
    from parallel.zero.teacher import FrozenTeacher


def step(
    config: RunConfig, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor, teacher: Tensor
) -> StepOutput:
    """The losses of images (B, 3, H, W): against labels (B,) or (B, K), and a teacher's logits (B, K)."""
    options = options_of(config, LogitOptions)
    images, labels = inputs
    output = engine(images, keys)
    soft = soft_target_loss(output.logits, teacher, options.temperature)
    hard = class_loss(config.optim, output.logits, labels)
    agreement = (output.logits.argmax(1) == teacher.argmax(1)).float().mean()
    return StepOutput(
        loss=options.hard_weight * hard + (1 - options.hard_weight) * soft,
        terms={"soft_loss": soft.detach(), "hard_loss": hard.detach(), "agreement": agreement},
        moe=output.moe,
    )


class LogitTask(ClassificationTask):
    """Training of a classifier by the probabilities of a frozen teacher."""

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        self.context, self.options = context, options_of(config, LogitOptions)

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """Read before the first step; an evaluation needs none."""
        source = teacher_source(self.config, self.options.teacher, "logits")
        return build_teacher(self.config, self.context, source, str(self.options.teacher.weights))

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Read the teacher's weights, by all ranks together."""
        _ = self.teacher

    def state(self) -> dict[str, Stateful]:
        """The digest of the teacher."""
        return {"teacher": self.teacher}

    def step(self, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
        """The losses of a micro-batch; the teacher sees the images as the student does, augmented."""
        return step(self.config, engine, inputs, keys, self.teacher(inputs[0]))
