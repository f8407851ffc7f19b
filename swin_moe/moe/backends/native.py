"""Who carries routed tokens to their experts: our own layer, Tutel, or a plain loop for tests.

A backend is a function of a layer and a routing; the parameters, the router and the losses are the layer's.
To add one: a function and an entry in BACKENDS.

Legend: T tokens, k choices, E experts, C channels.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from parallel.experts.exchange import ExchangeOptions
from parallel.experts.placement import ExpertSlice
from swin_moe.config import require
from swin_moe.moe.dispatch import Plan
from swin_moe.moe.routers.registry import RouterCall, Routing
from swin_moe.random.keyed import fork

if TYPE_CHECKING:
    from swin_moe.moe.layer import MoELayer


class Done(NamedTuple):
    """The experts' answer, and who took part."""

    y: Tensor  # (T, C)
    load: Tensor  # (E,) int64
    dropped: Tensor  # scalar int64
    received: Tensor  # scalar int64
    kept: Tensor | None = None  # (T, k) bool: choices that found a slot; None where there are no choices


class Routed(NamedTuple):
    """One forward pass of a layer whose router has decided."""

    layer: "MoELayer"  # whose experts compute
    tokens: Tensor  # (T, C)
    keys: Tensor  # (T,)
    routing: Routing
    request: RouterCall  # what the router was asked
    options: ExchangeOptions | None  # of the exchange; None is the placement's


Backend = Callable[[Routed], Done]


def native(routed: Routed) -> Done:
    """Rows sorted by expert, no padding, gathers and one GEMM an expert."""
    layer, tokens, keys, routing, request, options = routed
    options = options or layer.placement.options
    size = len(tokens) // max(1, request.groups)  # tokens of a group
    plan = routing.plan(
        groups=request.groups, slots=request.slots, padded=options.padded and request.slots < size
    )
    keyed = layer.training and layer.experts.dropout.rate > 0
    counted = layer.exchange.count(
        layer.experts.weights(),
        plan.counts,
        like=tokens,
        keyed=keyed,
        rows_bound=plan.rows_bound,
        static_count=plan.static_count,
        options=options,
    )
    plan = plan.settled(counted.rows)
    rows, received = layer.exchange.run(
        layer.experts,
        layer.experts.weights(),
        plan.dispatch(tokens),
        counted,
        keys=plan.keys(keys) if keyed else None,
    )
    kept = plan.row < len(plan.order) if isinstance(plan, Plan) else None
    return Done(y=plan.combine(rows), load=plan.load, dropped=plan.dropped, received=received, kept=kept)


def reference(routed: Routed) -> Done:
    """One assignment after the other, as the definition reads; one rank, and as slow as it looks."""
    layer, tokens, keys, routing, request, _ = routed
    placement, num_experts = layer.placement, layer.config.num_experts
    require(placement.ep_size == 1, f"model.moe.backend=reference runs on ep_size 1, not {placement.ep_size}")
    require(
        layer.config.router != "soft", "model.moe.backend=reference has no soft router: there are no choices"
    )
    load, dropped, received = [0] * num_experts, 0, 0
    answers = [torch.zeros_like(token) for token in tokens]
    kept = torch.zeros(routing.expert_index.shape, dtype=torch.bool, device=tokens.device)
    index, choices = routing.expert_index.tolist(), routing.expert_index.shape[1]
    for order in routing.order.flatten(1).tolist():
        used = [0] * num_experts
        for token, choice in (divmod(assignment, choices) for assignment in order):
            expert = index[token][choice]
            if expert == num_experts:  # no such choice; without a first one no expert chose the token
                dropped += choice == 0
                continue
            load[expert] += 1
            if used[expert] == request.slots:
                dropped += 1
                continue
            used[expert] += 1
            received += 1
            kept[token, choice] = True
            weights = [weight[expert : expert + 1] for weight in layer.experts.weights()]
            key = fork(keys[token : token + 1], choice)
            row = layer.experts(weights, tokens[None, token], [1], key, ExpertSlice())
            answers[token] = answers[token] + routing.gates[token, choice].to(row.dtype) * row[0]
    counts = torch.tensor([*load, dropped, received], device=tokens.device)
    return Done(torch.stack(answers), load=counts[:-2], dropped=counts[-2], received=counts[-1], kept=kept)


def tutel(routed: Routed) -> Done:
    """Tutel's dispatch, exchange and combine, where it is installed."""
    from swin_moe.moe.backends.tutel import run_tutel

    return run_tutel(routed.layer, routed.tokens, routed.keys, routed.routing, routed.request)


BACKENDS: dict[str, Backend] = {"native": native, "reference": reference, "tutel": tutel}
