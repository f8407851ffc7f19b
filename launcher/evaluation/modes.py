"""The modes in which a model is evaluated: exact, at a capacity, and those of a sweep."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe_config import MoEConfig

if TYPE_CHECKING:  # they import torch
    from launcher.evaluation.loop import Evaluation
    from launcher.metrics.metric import Metric


class EvalMode(NamedTuple):
    """A mode of evaluation and its name."""

    name: str
    call: RoutingOverrides
    capacity_factor: float  # 0 is dropless, which is exact
    top_k: int  # 0 without experts

    def line(self, metric: "Metric", metrics: dict[str, Any]) -> str:
        """The result as text; without experts nothing can be dropped."""
        dropped = f", {metrics['dropped_fraction']:.2%} of the tokens' choices dropped" if self.top_k else ""
        return f"{metric.line(metrics)}, {metrics['images_s']:.0f} images/s{dropped}"

    def record(self, evaluation: "Evaluation") -> dict[str, Any]:
        """The result for a file."""
        mode = {"way": self.name, "capacity_factor": self.capacity_factor, "top_k": self.top_k}
        return mode | evaluation.metrics


def standard_modes(moe: MoEConfig | None, factor: float | None = None) -> list[EvalMode]:
    """Exact, and for an MoE also at a capacity; routers in which experts choose have no exact mode.

    Args:
        moe: of the model.
        factor: the capacity factor; None is that of evaluation, or else that of training.
    """
    if moe is None or moe.router == "soft":
        return [EvalMode("exact", RoutingOverrides(), 0.0, moe.top_k if moe else 0)]
    factor = (moe.eval_capacity_factor or moe.capacity_factor) if factor is None else factor
    exact = [eval_mode(moe, 0.0, moe.top_k)] if moe.router != "expert_choice" else []
    return exact + ([eval_mode(moe, factor, moe.top_k)] if factor else [])


def sweep_modes(moe: MoEConfig, factors: Sequence[float], choices: Sequence[int]) -> list[EvalMode]:
    """Every capacity factor with every top_k; empty means the one of `standard_modes`."""
    factors = factors or [standard_modes(moe)[-1].capacity_factor]
    return [eval_mode(moe, factor, top_k) for top_k, factor in product(choices or [moe.top_k], factors)]


def eval_mode(moe: MoEConfig, factor: float, top_k: int) -> EvalMode:
    """One capacity factor and one top_k."""
    name = f"capacity {factor:g} in routing groups of {moe.routing_group_images}" if factor else "exact"
    return EvalMode(name, RoutingOverrides(capacity_factor=factor, top_k=top_k), factor, top_k)


def need_groups(modes: Sequence[EvalMode]) -> bool:
    """Whether one of the modes depends on the routing groups."""
    return any(mode.capacity_factor for mode in modes)
