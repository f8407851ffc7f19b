"""Rules of the capacity of experts. No torch."""

import math

from swin_moe.config import ModelConfig
from swin_moe.moe.capacity import capacity


def capacity_errors(model: ModelConfig) -> list[str]:
    """Which capacity factors of a model leave an expert no slot."""
    if model.moe is None:
        return []
    factors = {name: getattr(model.moe, name) for name in ("capacity_factor", "eval_capacity_factor")}
    errors = (slots_error(model, f"model.moe.{name}", factor) for name, factor in factors.items())
    return [error for error in errors if error]


def slots_error(model: ModelConfig, option: str, factor: float) -> str | None:
    """Why a capacity factor cannot be: it leaves an expert of some stage no slot in a routing group.

    Args:
        model: with experts or without.
        option: what the factor is called, such as "model.moe.capacity_factor".
        factor: see `capacity`; 0 is dropless.
    """
    moe = model.moe
    if moe is None or moe.router == "soft" or factor == 0:
        return None
    for stage in (stage for stage, blocks in enumerate(moe.blocks) if blocks):
        tokens = moe.routing_group_images * math.prod(model.stage_resolution(stage))
        share = -(-tokens // moe.num_experts)
        if capacity(factor, tokens, moe.num_experts, moe.top_k) < 1:
            return (
                f"{option} ({factor}) leaves an expert of stage {stage} no slot: top_k ({moe.top_k}) x "
                f"int({abs(factor)} x ceil({tokens} tokens of model.moe.routing_group_images "
                f"({moe.routing_group_images}) / model.moe.num_experts ({moe.num_experts}) = {share})) = 0; "
                f"set it to at least {1 / share:.3g}, or 0 for dropless"
            )
    return None
