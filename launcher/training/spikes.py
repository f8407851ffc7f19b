"""Gradient norms far beyond the usual: counted and said, and their steps left out if that is asked for.

The running norm is an exponential moving average over the last 100 steps that were finite; until there were
as many it is their mean. A spike enters it with the most that is none, so that the average follows a norm
that has come to stay, and one spike does not hide the next.
"""

from typing import Any, Literal

SPAN, WARM_UP = 100, 20  # steps of the average, and before it is acted on


class SpikeGuard:
    """Judges the gradient norm of every finite step; what it is told is the same on every rank.

    Args:
        factor: a norm beyond this multiple of the running norm is a spike; 0 looks for none.
        action: what becomes of its step.
        span: steps that the running norm is an average of.
        warm_up: finite steps before there can be a spike.
    """

    def __init__(
        self, factor: float, action: Literal["log", "skip"], *, span: int = SPAN, warm_up: int = WARM_UP
    ) -> None:
        self.total = 0  # spikes of the run
        self._factor, self._action, self._span, self._warm_up = factor, action, span, warm_up
        self._norm, self._steps, self._spike = 0.0, 0, ""

    @property
    def is_on(self) -> bool:
        """Whether there is anything to judge."""
        return self._factor > 0

    def accepts(self, norm: float) -> bool:
        """Take note of a finite step's norm: whether the step is to be taken."""
        bound = self._factor * self._norm
        spike = self._steps >= self._warm_up and norm > bound
        if spike:
            self.total += 1
            self._spike = (
                f"a gradient norm of {norm:.4g}, {norm / max(self._norm, 1e-30):.1f} times the running norm "
                f"({self._norm:.4g}; train.spike_factor is {self._factor:g})"
            )
        self._steps += 1
        self._norm += ((bound if spike else norm) - self._norm) / min(self._steps, self._span)
        return not (spike and self._action == "skip")

    def take(self) -> str:
        """What spike there was since the last call; "" for none."""
        spike, self._spike = self._spike, ""
        return spike

    def state_dict(self) -> dict[str, Any]:
        """JSON-able, the same on all ranks."""
        return {"norm": self._norm, "steps": self._steps, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._norm, self._steps, self.total = float(state["norm"]), int(state["steps"]), int(state["total"])
