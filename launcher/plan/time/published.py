"""How much of a predicted speed was reached in the runs that predictions were compared with.

`python -m benchmarks.plan_published` and `benchmarks.plan_time` give these shares; docs/planner_time.md has
every comparison. A prediction is an upper bound of the speed, so each command prints them beside it.
"""

from typing import NamedTuple

from launcher.plan.base.hardware import Device


class Reached(NamedTuple):
    """The share of the predicted speed that some runs reached."""

    runs: str
    low: float
    high: float

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.runs} {self.low * 100:.0f} to {self.high * 100:.0f} %"


MOE_ON_A100 = Reached("SwinV2-MoE-B on 8 to 128 A100 (Hwang et al. 2023)", 0.23, 0.32)
TIMM_ON_3090 = Reached("Swin and SwinV2 on one RTX 3090 (timm)", 0.44, 0.78)
# the least by the clock on the wall, at stages 0 to 2; the most in processor seconds, which have no waiting
OURS_ON_CPU = Reached("this program on 1 to 4 ranks of a CPU", 0.64, 1.0)
RUNS: dict[Device, tuple[Reached, ...]] = {"cuda": (MOE_ON_A100, TIMM_ON_3090), "cpu": (OURS_ON_CPU,)}


def bound_line(device: Device) -> str:
    """What every prediction ends with."""
    reached = ", ".join(one.text for one in RUNS[device])
    return f"speeds are upper bounds; measured runs reached less of them: {reached} (docs/planner_time.md)"
