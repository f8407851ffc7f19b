"""All routers by name."""

from collections.abc import Callable

from swin_moe.config import MoEConfig
from swin_moe.moe.routers.base import Router, RouterCall, Routing, SoftRouting
from swin_moe.moe.routers.other import ExpertChoiceRouter, HashRouter, RandomRouter, SoftRouter
from swin_moe.moe.routers.topk import CosineTopKRouter, LinearTopKRouter, SigmoidTopKRouter

__all__ = [
    "ROUTERS",
    "CosineTopKRouter",
    "Router",
    "RouterCall",
    "Routing",
    "SigmoidTopKRouter",
    "SoftRouting",
]

ROUTERS: dict[str, Callable[[int, MoEConfig, int], Router]] = {
    "linear": LinearTopKRouter,
    "cosine": CosineTopKRouter,
    "sigmoid": SigmoidTopKRouter,
    "expert_choice": ExpertChoiceRouter,
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}
