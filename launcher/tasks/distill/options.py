"""The options of feature distillation: the section `distill` of a run. No torch."""

from dataclasses import dataclass, field

from swin_moe.heads.distill_config import DistillConfig
from swin_moe.teachers.options import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class DistillOptions(DistillConfig):
    """The teacher, and how the student's map is compared with its."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # frozen; its digest is part of the run
