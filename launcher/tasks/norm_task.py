"""Tasks whose models may have batch norms over groups of images (`swin_moe/backbone/group_batch_norm.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from launcher.config.schema import RunConfig
from launcher.tasks.spec import TaskBase
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.group_batch_norm import span_ranks, update_running_statistics

if TYPE_CHECKING:  # DeepSpeed, which checks of a configuration do not import
    from parallel.zero.engine import Engine
    from parallel.zero.master_weights import MasterWeights


class NormTask(TaskBase):
    """Gives the batch norms their ranks, and moves their running statistics. A model may have none.

    Args:
        config: of the run.
        mesh: of the ranks.
        model: with the batch norms; None: the class that derives from this one sets it.
    """

    model: nn.Module

    def __init__(self, config: RunConfig, mesh: Mesh, model: nn.Module | None = None) -> None:
        self.config, self.mesh = config, mesh
        if model is not None:
            self.model = model

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Give the batch norms the ranks that hold a group of images."""
        self.span_ranks(self.model)

    def span_ranks(self, model: nn.Module) -> None:
        """Give the batch norms of a model, such as a teacher, the ranks that hold a group of images."""
        train = self.config.train
        span_ranks(
            model,
            self.mesh,
            micro_batch_size=train.micro_batch_size,
            grad_accum_steps=train.grad_accum_steps(self.mesh.dims.world_size),
        )

    def after_step(self, step: int, skipped: bool) -> None:
        """Move the running statistics of the batch norms."""
        update_running_statistics(self.model, skipped=skipped)
