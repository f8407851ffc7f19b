"""What an MoE layer hands to a backend, and what it gets back.

A backend carries routed tokens to their experts and back: dispatch, exchange, experts, combine. It is a
function of an ExpertLayer and its RoutedTokens. Parameters, router and losses are the layer's. To add one: a
function in a module beside this one, and an entry in `BACKENDS` of `__init__.py`.

Legend: T tokens, k choices a token, E experts, C channels.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from parallel.experts.exchange import ExpertExchange
from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from swin_moe.moe.experts import ExpertMLP
from swin_moe.moe.routers.base import Routing, RoutingRequest, SoftRouting
from swin_moe.moe_config import MoEConfig


class ExpertLayer(Protocol):
    """What a backend needs of an MoE layer."""

    config: MoEConfig
    placement: ExpertParallel  # which experts this rank holds
    exchange: ExpertExchange  # brings rows and experts together
    experts: ExpertMLP  # of this rank
    training: bool


class RoutedTokens(NamedTuple):
    """The tokens of one forward pass, and what the router decided about them."""

    tokens: Tensor  # (T, C)
    keys: Tensor  # (T,)
    routing: Routing | SoftRouting
    request: RoutingRequest  # what the router decided by
    options: ExchangeOptions | None  # of the exchange; None is the placement's


class ExpertOutput(NamedTuple):
    """The answer of the experts, and how many rows they got."""

    y: Tensor  # (T, C)
    load: Tensor  # (E,) int64 choices that wanted each expert, dropped ones included
    dropped: Tensor  # scalar int64: choices without a slot
    received: Tensor  # scalar int64: rows that this rank's experts computed
    kept: Tensor | None = None  # (T, k) bool: choices with a slot; None where there are no choices


Backend = Callable[[ExpertLayer, RoutedTokens], ExpertOutput]
