"""Tasks whose student learns from a frozen teacher."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from launcher.config.schema import RunConfig
from launcher.tasks.frozen_teacher import build_teacher, teacher_source
from launcher.tasks.image_data import ImageTask
from launcher.tasks.spec import Stateful, TaskContext
from swin_moe.teachers.options import TeacherConfig
from swin_moe.teachers.source import TeacherSource, Wanted

if TYPE_CHECKING:  # DeepSpeed, which checks of a configuration do not import
    from parallel.zero.engine import Engine
    from parallel.zero.master_weights import MasterWeights
    from parallel.zero.teacher import FrozenTeacher


class TaughtTask(ImageTask):
    """Reads the teacher that the options of the task name, and keeps its digest in checkpoints.

    Args:
        config: of the run.
        context: of this rank.
    """

    wanted: ClassVar[Wanted]  # of the teacher

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        self.context = context

    @property
    def teacher_options(self) -> TeacherConfig:
        """Which teacher it is."""
        raise NotImplementedError

    @cached_property
    def source(self) -> TeacherSource:
        """The teacher by its small files."""
        return teacher_source(self.config, self.teacher_options, self.wanted)

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """Its weights, read when they are needed first, by all ranks together."""
        return build_teacher(self.config, self.context, self.source, str(self.teacher_options.weights))

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Give the batch norms their ranks, and read the teacher's weights before the first step."""
        super().attach(engine, masters)
        _ = self.teacher

    def state(self) -> dict[str, Stateful]:
        """The digest of the teacher."""
        return {"teacher": self.teacher}
