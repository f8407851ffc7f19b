"""The MoE layer as its papers describe it: loops over groups, tokens, choices and experts.

It shares nothing with the layer but the parameters: its own softmax, cosine, GELU, capacity, order and
balance loss, one token at a time; autograd gives its gradients. No noise and no dropout. Hash and random
choices are taken from the router (test_router.py holds how they are drawn); everything else is done here.

Legend: B images, L tokens an image, C channels, H hidden, E experts, S slots an expert and image (soft).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from swin_moe.moe.layer import MoELayer
from swin_moe.moe.routers.base import RoutingRequest
from swin_moe.random.keyed import fold_in


@dataclass
class Reference:
    y: Tensor  # (B, L, C)
    loss: Tensor | float = 0.0  # weighted
    load: list[int] = field(default_factory=list)
    dropped: int = 0


@dataclass
class Asked:
    """One forward pass: the capacity factor, the images of a group, and the choices a token."""

    factor: float
    group_images: int
    top_k: int


def softmax(logits: list[Tensor]) -> list[Tensor]:
    exponentials = [torch.exp(logit - max(logits).detach()) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def norm(a: Tensor) -> Tensor:
    return dot(a, a) ** 0.5


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def expert_mlp(x: Tensor, layer: MoELayer, e: int) -> Tensor:
    experts = layer.experts
    hidden = (x[:, None] * experts.fc1_weight[e]).sum(0) + experts.fc1_bias[e]
    if layer.config.expert_activation == "swiglu":
        gate = (x[:, None] * experts.gate_weight[e]).sum(0) + experts.gate_bias[e]
        hidden = hidden * gate / (1 + torch.exp(-gate))
    else:
        hidden = gelu(hidden)
    y = (hidden[:, None] * experts.fc2_weight[e]).sum(0)
    return y if experts.fc2_bias is None else y + experts.fc2_bias[e]


def logits_of(token: Tensor, layer: MoELayer) -> list[Tensor]:
    router, experts = layer.router, range(layer.config.num_experts)
    if layer.config.router != "cosine":
        return [dot(router.weight[e], token) for e in experts]
    projector = router.cosine_projector
    p = projector.weight @ token + projector.bias  # 256 wide: the one product that is no loop
    scale = torch.exp(torch.clamp(router.temperature[0], max=math.log(100)))
    columns = [router.sim_matrix[:, e] for e in experts]
    return [scale * dot(p, column) / (norm(p) * norm(column)) for column in columns]


def scores_of(token: Tensor, layer: MoELayer) -> list[Tensor]:
    logits = logits_of(token, layer)
    if layer.config.router == "sigmoid":
        return [1 / (1 + torch.exp(-logit)) for logit in logits]
    return softmax(logits)


def best_experts(score: list[Tensor], layer: MoELayer, top_k: int) -> list[int]:
    """The k highest, ties to the lower expert; the sigmoid router's bias counts in the choice alone."""
    bias = [0.0] * len(score)
    if layer.config.router == "sigmoid":
        bias = [layer.config.bias_update_rate * steps for steps in layer.router.bias_steps.tolist()]
    return sorted(range(len(score)), key=lambda e: (-(score[e].item() + bias[e]), e))[:top_k]


def slots_of(layer: MoELayer, tokens: int, asked: Asked) -> int:
    """k * floor(|f| * ceil(tokens / E)), or one for every token."""
    if asked.factor == 0:
        return tokens
    return asked.top_k * math.floor(abs(asked.factor) * -(-tokens // layer.config.num_experts))


def reference(x: Tensor, layer: MoELayer, keys: Tensor, asked: Asked) -> Reference:
    """What the layer shall give for images x (B, L, C)."""
    if layer.config.router == "soft":
        return soft(x, layer)
    whole = Reference(y=x, load=[0] * layer.config.num_experts)
    outputs: list[Tensor] = []
    losses: list[Tensor] = []
    for first in range(0, len(x), asked.group_images):
        tokens = [token for image in x[first : first + asked.group_images] for token in image]
        part = keys[first : first + asked.group_images]
        if layer.config.router == "expert_choice":
            outputs += expert_choice(tokens, layer, asked, whole)
        elif layer.config.router in ("hash", "random"):
            choices, gates = drawn(tokens, part, layer, asked)
            outputs += token_choice(tokens, choices, gates, list(range(len(tokens))), layer, asked, whole)
        else:
            scores = [scores_of(token, layer) for token in tokens]
            choices = [best_experts(score, layer, asked.top_k) for score in scores]
            gates = [gates_of(score, best, layer) for score, best in zip(scores, choices, strict=True)]
            queue = list(range(len(tokens)))
            if layer.config.batch_prioritized:
                queue.sort(key=lambda t, scores=scores: (-max(score.item() for score in scores[t]), t))
            outputs += token_choice(tokens, choices, gates, queue, layer, asked, whole)
            losses.append(gshard(scores, choices))
    whole.y = torch.stack(outputs).view_as(x)
    if losses and layer.config.balance == "gshard" and layer.training:
        whole.loss = layer.config.load_balance_weight * sum(losses) / len(losses)
    return whole


def gates_of(score: list[Tensor], chosen: list[int], layer: MoELayer) -> list[Tensor]:
    gates = [score[e] for e in chosen]
    return [gate / sum(gates) for gate in gates] if layer.config.normalize_gates else gates


def token_choice(
    tokens: list[Tensor],
    choices: list[list[int]],
    gates: list[list[Tensor]],
    queue: list[int],
    layer: MoELayer,
    asked: Asked,
    whole: Reference,
) -> list[Tensor]:
    """First choices of everybody in the queue, then second ones, until the slots are gone."""
    slots, used = slots_of(layer, len(tokens), asked), [0] * layer.config.num_experts
    sums = [torch.zeros_like(token) for token in tokens]
    for choice in range(asked.top_k):
        for t in queue:
            e = choices[t][choice]
            whole.load[e] += 1
            if used[e] >= slots:
                whole.dropped += 1
                continue
            used[e] += 1
            sums[t] = sums[t] + gates[t][choice] * expert_mlp(tokens[t], layer, e)
    return sums


def expert_choice(tokens: list[Tensor], layer: MoELayer, asked: Asked, whole: Reference) -> list[Tensor]:
    """Each expert takes the tokens that score highest for it; dropped is whom nobody took."""
    scores = [softmax(logits_of(token, layer)) for token in tokens]
    slots = min(len(tokens), slots_of(layer, len(tokens), asked))
    sums, taken = [torch.zeros_like(token) for token in tokens], set()
    for e in range(layer.config.num_experts):
        order = sorted(range(len(tokens)), key=lambda t, e=e: (-scores[t][e].item(), t))
        for t in order[:slots]:
            sums[t] = sums[t] + scores[t][e] * expert_mlp(tokens[t], layer, e)
            whole.load[e] += 1
            taken.add(t)
    whole.dropped += len(tokens) - len(taken)
    return sums


def drawn(
    tokens: list[Tensor], keys: Tensor, layer: MoELayer, asked: Asked
) -> tuple[list[list[int]], list[list[Tensor]]]:
    """The choices of the hash and the random router, as the router draws them; gates 1 / k."""
    length = len(tokens) // len(keys)
    token_keys = fold_in(keys[:, None], torch.arange(length)).view(-1)
    call = RoutingRequest(groups=1, length=length, top_k=asked.top_k, factor=asked.factor, slots=len(tokens))
    choices = layer.router(torch.stack(tokens), token_keys, call).expert_index.tolist()
    share = torch.tensor(1 / asked.top_k, dtype=tokens[0].dtype)
    return choices, [[share] * asked.top_k for _ in tokens]


def gshard(scores: list[list[Tensor]], choices: list[list[int]]) -> Tensor:
    """E * sum_e (share of first choices) * (mean score); sigmoid scores are first brought to sum 1."""
    balance = torch.zeros((), dtype=scores[0][0].dtype)
    shares = [[value / sum(score) for value in score] for score in scores]
    for e in range(len(scores[0])):
        share = sum(best[0] == e for best in choices) / len(choices)
        balance = balance + share * sum(score[e] for score in shares) / len(scores)
    return len(scores[0]) * balance


def soft(x: Tensor, layer: MoELayer) -> Reference:
    """Soft MoE: slots are averages of an image's tokens, tokens averages of its slots' answers."""
    experts, slots = layer.config.num_experts, layer.config.slots_per_expert
    phi, scale = layer.router.phi, layer.router.scale
    columns = [scale * phi[:, s] / norm(phi[:, s]) for s in range(experts * slots)]
    outputs = []
    for image in x:
        logits = [[dot(token / norm(token), column) for column in columns] for token in image]
        answers = []
        for s in range(experts * slots):
            weights = softmax([row[s] for row in logits])
            mixed = torch.stack([w * token for w, token in zip(weights, image, strict=True)]).sum(0)
            answers.append(expert_mlp(mixed, layer, s // slots))
        for row in logits:
            weights = softmax(row)
            outputs.append(sum(w * answer for w, answer in zip(weights, answers, strict=True)))
    return Reference(y=torch.stack(outputs).view_as(x), load=[len(x) * slots] * experts)
