"""The dynamic loss scale of fp16 (Micikevicius et al. 2018, section 3.2), the same at every ZeRO stage.

DeepSpeed's own scalers count differently at stage 0 and above, so that a run's scale would depend on its
stage; here its static one gets the scale of each step.
"""

from typing import Any

START, FACTOR, WINDOW, LOWEST = 2.0**16, 2.0, 1000, 1.0


class LossScale:
    """Halved when a step overflowed, doubled after `WINDOW` steps that did not."""

    def __init__(self) -> None:
        self.value, self._good_steps = START, 0

    def update(self, *, overflowed: bool) -> None:
        """Take note of a step; all ranks see the same."""
        if overflowed:
            self.value, self._good_steps = max(LOWEST, self.value / FACTOR), 0
            return
        self._good_steps += 1
        if self._good_steps == WINDOW:
            self.value, self._good_steps = self.value * FACTOR, 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.value, self._good_steps = float(state["value"]), int(state["good_steps"])
