"""How the experts of an artifact run, in words and figures."""

from launcher.deploy.card import ExpertsCard
from launcher.deploy.options import DeployOptions
from swin_moe.moe_config import MoEConfig

DROPLESS = "no token is dropped, so that the answer to an image does not depend on its batch"


def experts_card(moe: MoEConfig | None, options: DeployOptions) -> ExpertsCard | None:
    """What the card says of the experts; None of a model without any."""
    if moe is None:
        return None
    assert options.products is not None
    is_dense = options.products == "dense" and moe.router != "soft"
    return ExpertsCard(
        products=options.products,
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        cost=moe.num_experts / moe.top_k if is_dense else 1.0,
        note=_note(moe),
    )


def _note(moe: MoEConfig) -> str:
    """How the artifact differs from evaluations of the run."""
    factor = moe.eval_capacity_factor
    if moe.router == "soft":
        return "every slot mixes the tokens of one image"
    if moe.router == "expert_choice":
        return f"each expert chooses among the tokens of one image, at a capacity factor of {factor:g}"
    of_run = f"; evaluations of the run drop: model.moe.eval_capacity_factor={factor:g}"
    return DROPLESS + of_run if factor else DROPLESS
