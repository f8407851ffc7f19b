"""In which ways a model is evaluated: exact, at a capacity, and everything that a sweep asks for."""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from launcher.evaluation.loop import Evaluation
from launcher.tasks.base import Task
from swin_moe.config import MoEConfig
from swin_moe.moe.layer import RoutingOverrides


class Way(NamedTuple):
    """A way of evaluation and what it is called."""

    name: str
    call: RoutingOverrides
    capacity_factor: float  # 0 is dropless, which is exact
    top_k: int  # 0 without experts

    def line(self, task: Task, figures: dict[str, Any]) -> str:
        """The result for a person."""
        return (
            f"{task.metric.line(figures)}, {figures['images_s']:.0f} images/s, "
            f"{figures['dropped_fraction']:.2%} of the tokens' choices dropped"
        )

    def record(self, found: Evaluation) -> dict[str, Any]:
        """The result for a file."""
        asked = {"way": self.name, "capacity_factor": self.capacity_factor, "top_k": self.top_k}
        return asked | found.metrics


def modes(moe: MoEConfig | None, factor: float | None = None) -> list[Way]:
    """Exact, and for an MoE also at a capacity; where experts choose there is no exact one.

    Args:
        moe: of the model.
        factor: the capacity factor; None is that of evaluation, or else that of training.
    """
    if moe is None or moe.router == "soft":
        return [Way("exact", RoutingOverrides(), 0.0, moe.top_k if moe else 0)]
    factor = (moe.eval_capacity_factor or moe.capacity_factor) if factor is None else factor
    exact = [way(moe, 0.0, moe.top_k)] if moe.router != "expert_choice" else []
    return exact + ([way(moe, factor, moe.top_k)] if factor else [])


def combinations(moe: MoEConfig, factors: Sequence[float], choices: Sequence[int]) -> list[Way]:
    """Every capacity with every number of choices; nothing asked for is as `modes` has it."""
    factors = factors or [modes(moe)[-1].capacity_factor]
    return [way(moe, factor, top_k) for top_k, factor in product(choices or [moe.top_k], factors)]


def way(moe: MoEConfig, factor: float, top_k: int) -> Way:
    """One capacity and one number of choices."""
    name = f"capacity {factor:g} in routing groups of {moe.routing_group_images}" if factor else "exact"
    return Way(name, RoutingOverrides(capacity_factor=factor, top_k=top_k), factor, top_k)


def grouped(ways: Sequence[Way]) -> bool:
    """Whether routing groups matter in one of them."""
    return any(way.capacity_factor for way in ways)
