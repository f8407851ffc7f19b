"""Routers by name: which experts each token goes to.

To add one: a class with the interface of `base.Router`, and an entry in ROUTERS.
"""

from collections.abc import Callable

from swin_moe.config import MoEConfig
from swin_moe.moe.routers.base import Router
from swin_moe.moe.routers.other import ExpertChoiceRouter, HashRouter, RandomRouter, SoftRouter
from swin_moe.moe.routers.topk import CosineTopKRouter, LinearTopKRouter, SigmoidTopKRouter

ROUTERS: dict[str, Callable[[int, MoEConfig, int], Router]] = {
    "linear": LinearTopKRouter,
    "cosine": CosineTopKRouter,
    "sigmoid": SigmoidTopKRouter,
    "expert_choice": ExpertChoiceRouter,
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}
