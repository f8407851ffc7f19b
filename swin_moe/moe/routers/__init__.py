"""Routers by name: which experts each token goes to.

One of another package needs no entry here: see `swin_moe.router_names`.
"""

from collections.abc import Callable

from swin_moe.moe.routers.base import Router
from swin_moe.moe.routers.other import ExpertChoiceRouter, HashRouter, RandomRouter, SoftRouter
from swin_moe.moe.routers.topk import CosineTopKRouter, LinearTopKRouter, SigmoidTopKRouter
from swin_moe.moe_config import MoEConfig
from swin_moe.router_names import own_router

ROUTERS: dict[str, Callable[[int, MoEConfig, int], Router]] = {
    "linear": LinearTopKRouter,
    "cosine": CosineTopKRouter,
    "sigmoid": SigmoidTopKRouter,
    "expert_choice": ExpertChoiceRouter,
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}


def build_router(dim: int, config: MoEConfig, site: int) -> Router:
    """The router of a layer.

    Args:
        dim: channels of a token.
        config: of the layer.
        site: number of the place that draws random numbers.
    """
    kind = ROUTERS.get(config.router) or own_router(config.router)
    router: Router = kind(dim, config, site)
    return router
