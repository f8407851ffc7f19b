"""Steps that were left out: counted, named, and too many of them in a row end the run on all ranks."""

from collections.abc import Sequence

import torch
from torch import nn

from launcher.errors import DivergedError


class SkippedSteps:
    """Counts the steps whose loss or gradient was not finite, and those skipped as spikes.

    The arguments of `count` are the same on every rank, so that every rank stops at the same step. The loss
    of each rank is known. A gradient that is not finite at a finite loss is searched for from the next step
    on, by hooks (`GradientSearch`).

    Args:
        limit: so many in a row end the run; 0 for no limit.
        total: of the run before this session.
    """

    def __init__(self, limit: int, total: int = 0) -> None:
        self.limit, self.total = limit, total
        self._in_a_row, self._first, self._spiked = 0, "", False

    def count(
        self,
        step: int,
        skipped: bool,
        *,
        loss_ranks: Sequence[int] = (),
        gradient_ranks: Sequence[int] = (),
        spike: str = "",
    ) -> None:
        """Count one step.

        Args:
            step: the last step.
            skipped: whether the weights stayed, because the gradient was not finite or was a spike.
            loss_ranks: ranks whose loss was not finite.
            gradient_ranks: ranks whose gradient was not finite, where that is known.
            spike: a description of the spike, if the step was one.

        Raises:
            DivergedError: this step reaches the limit.
        """
        if not skipped and not loss_ranks:
            self._in_a_row, self._first, self._spiked = 0, "", False
            return
        self._spiked |= skipped and bool(spike)
        if self._in_a_row == 0:
            where = spike if skipped and spike else "the gradient, at finite losses"
            if loss_ranks:
                where = f"the loss of rank {', '.join(map(str, loss_ranks))}"
            self._first = f"first at step {step}: {where}"
        elif gradient_ranks and "the gradient, at" in self._first:
            gradient = f", and then in the gradient of rank {', '.join(map(str, gradient_ranks))}"
            self._first += "" if gradient in self._first else gradient
        self._in_a_row += 1
        self.total += 1
        if self.limit and self._in_a_row >= self.limit:
            raise DivergedError(self._message(step))

    def _message(self, step: int) -> str:
        """The message of DivergedError."""
        what = "were skipped" if self._spiked else "were not finite"
        further = ", raise train.spike_factor" if self._spiked else ""
        return (
            f"{self._in_a_row} steps in a row up to step {step} {what}, {self._first}; the last checkpoint "
            f"stands. Lower optim.base_lr, clip tighter (optim.max_grad_norm){further} or look at the data; "
            f"train.max_skipped_steps ({self.limit}) sets how many"
        )

    @property
    def in_trouble(self) -> bool:
        """Whether the last step was left out, or not finite."""
        return self._in_a_row > 0


class GradientSearch:
    """While there is trouble: whether this rank's own gradients are finite, before they are reduced."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._handles = module, list[torch.utils.hooks.RemovableHandle]()
        self._bad: torch.Tensor | None = None

    def turn(self, on: bool) -> None:
        """Attach or remove the hooks."""
        if on == bool(self._handles):
            return
        if on:
            self._handles = [
                p.register_hook(self._look) for p in self._module.parameters() if p.requires_grad
            ]
        else:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _look(self, gradient: torch.Tensor) -> None:
        bad = ~torch.isfinite(gradient).all()
        self._bad = bad if self._bad is None else self._bad | bad

    def take(self) -> bool:
        """Whether any gradient since the last call was not finite."""
        bad, self._bad = self._bad, None
        return bad is not None and bool(bad)
