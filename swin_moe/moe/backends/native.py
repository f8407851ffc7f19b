"""Our own backend: gathers, the exchange of parallel/experts, and one GEMM an expert; no padding.

Legend: T tokens, k choices a token, E experts, N rows, C channels.
"""

from swin_moe.moe.backends.base import ExpertLayer, ExpertOutput, RoutedTokens
from swin_moe.moe.dispatch import DispatchPlan


def run_native(layer: ExpertLayer, routed: RoutedTokens) -> ExpertOutput:
    """Dispatch, exchange, experts, combine."""
    tokens, keys, routing, request, options = routed
    options = options or layer.placement.options
    weights = layer.experts.weights()
    drops = layer.training and layer.experts.dropout.rate > 0  # rows travel with their keys

    # dispatch: one row for each choice that has a slot, sorted by expert
    group_tokens = len(tokens) // max(1, request.groups)
    padded = options.padded and request.slots < group_tokens
    plan = routing.plan(groups=request.groups, slots=request.slots, padded=padded)
    counted = layer.exchange.count(
        weights,
        plan.counts,
        like=tokens,
        keyed=drops,
        rows_bound=plan.rows_bound,
        static_count=plan.static_count,
        options=options,
    )
    plan = plan.settled(counted.rows)
    rows = plan.dispatch(tokens)  # (N, C)
    row_keys = plan.keys(keys) if drops else None  # (N,)

    # exchange and experts: rows go to the ranks of their experts, or weights come here, piece by piece
    answers, received = layer.exchange.run(layer.experts, weights, rows, counted, keys=row_keys)  # (N, C)

    # combine: each token's rows, weighted by its gates
    y = plan.combine(answers)  # (T, C)
    kept = plan.row < len(plan.order) if isinstance(plan, DispatchPlan) else None
    return ExpertOutput(y, load=plan.load, dropped=plan.dropped, received=received, kept=kept)
