"""The options of logit distillation: the section `distill_logits` of a run. No torch."""

from dataclasses import dataclass, field

from parallel.ranges import check_ranges
from swin_moe.errors import ModelError, require
from swin_moe.teachers.options import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class LogitOptions:
    """The teacher, and the two losses of a student (Hinton et al. 2015, arXiv:1503.02531, section 2)."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # frozen; its digest is part of the run
    temperature: float = 1.0  # that divides the logits of both before the softmax
    # of the loss against the labels (optim.loss); that against the teacher's probabilities has the rest
    hard_weight: float = 0.0

    def __post_init__(self) -> None:
        check_ranges("distill_logits.", self, error=ModelError, temperature=(1e-3, 1e3))
        require(
            0 <= self.hard_weight < 1,
            f"distill_logits.hard_weight ({self.hard_weight}) must lie in [0, 1): 1 has no teacher, which is "
            "task=classification",
        )
