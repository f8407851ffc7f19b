"""A backend for tests: one assignment after the other, as the definition reads. One rank, no soft router."""

import torch

from parallel.experts.placement import ExpertSlice
from swin_moe.moe.backends.base import ExpertLayer, ExpertOutput, RoutedTokens
from swin_moe.moe.routers.base import Routing
from swin_moe.random.keyed import fold_in


def run_reference(layer: ExpertLayer, routed: RoutedTokens) -> ExpertOutput:
    """Go through the assignments of each group by priority, and give each one a slot while there are any."""
    tokens, keys, routing, request, _ = routed
    assert layer.placement.ep_size == 1
    assert isinstance(routing, Routing)
    num_experts = layer.config.num_experts
    load, dropped, received = [0] * num_experts, 0, 0
    answers = [torch.zeros_like(token) for token in tokens]
    kept = torch.zeros(routing.expert_index.shape, dtype=torch.bool, device=tokens.device)
    index, choices = routing.expert_index.tolist(), routing.expert_index.shape[1]
    for assignments in routing.priority.flatten(1).tolist():
        used = [0] * num_experts
        for token, choice in (divmod(assignment, choices) for assignment in assignments):
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
            key = fold_in(keys[token : token + 1], choice)
            row = layer.experts(weights, tokens[None, token], [1], key, ExpertSlice())
            answers[token] = answers[token] + routing.gates[token, choice].to(row.dtype) * row[0]
    counts = torch.tensor([*load, dropped, received], device=tokens.device)
    return ExpertOutput(
        torch.stack(answers), load=counts[:-2], dropped=counts[-2], received=counts[-1], kept=kept
    )
