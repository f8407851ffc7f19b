"""Logit distillation: soft targets of a frozen teacher, beside the labels.

Legend: B images of H x W pixels, K classes.
"""

from typing import Any

from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.class_loss import class_loss
from launcher.tasks.classification.task import ClassificationTask
from launcher.tasks.distill_logits.options import LogitOptions
from launcher.tasks.spec import StepOutput
from launcher.tasks.taught_task import TaughtTask
from swin_moe.heads.distill import soft_target_loss
from swin_moe.teachers.options import TeacherConfig


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


class LogitTask(ClassificationTask, TaughtTask):
    """Training of a classifier by the probabilities of a frozen teacher; an evaluation needs none."""

    wanted = "logits"

    @property
    def teacher_options(self) -> TeacherConfig:
        """Of the section of the task."""
        return options_of(self.config, LogitOptions).teacher

    def step(self, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
        """The losses of a micro-batch; the teacher sees the images as the student does, augmented."""
        return step(self.config, engine, inputs, keys, self.teacher(inputs[0]))
