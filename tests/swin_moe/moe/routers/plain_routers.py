"""Every router, its plan and its losses as plain loops over groups, tokens, choices and experts.

The loops share nothing with the routers but the parameters and the keyed draws; autograd gives their
gradients. The experts are tanh(x W_e + b_e), which have an answer to a row of zeros too: a padding row that
was combined would show.

Legend: B images, L tokens an image, C channels, E experts, T = B * L.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from swin_moe.moe.capacity import capacity
from swin_moe.moe.routers import ROUTERS
from swin_moe.moe.routers.base import Router, RoutingRequest
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import fold_in, normal, sample_keys, uniform

IMAGES, LENGTH, DIM, EXPERTS, GROUPS, SITE = 4, 5, 3, 4, 2, 3
SIZE = IMAGES * LENGTH // GROUPS  # tokens of a routing group


@dataclass
class Case:
    """A router in fp64 with its tokens, and experts W (E, C, C), b (E, C)."""

    router: Router
    tokens: Tensor
    keys: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.tokens, self.weight, self.bias, *self.router.parameters()]

    def expert(self, e: int, rows: Tensor) -> Tensor:
        return torch.tanh(rows @ self.weight[e] + self.bias[e])


def make_case(name: str, *, images: int = IMAGES, num_experts: int = EXPERTS, **options: object) -> Case:
    config = MoEConfig(blocks=(), num_experts=num_experts, router=name, eval_capacity_factor=1.0, **options)
    router = ROUTERS[name](DIM, config, SITE).double()
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(draw(*parameter.shape))
        if name == "sigmoid":  # far enough to change choices: the scores differ by tenths
            router.bias_steps.copy_(100 * torch.arange(num_experts) % 300 - 150)
    tokens = draw(images * LENGTH, DIM)
    keys = sample_keys(1, torch.arange(len(tokens)))
    return Case(router, tokens, keys, draw(num_experts, DIM, DIM), draw(num_experts, DIM))


def make_call(case: Case, *, factor: float, top_k: int, groups: int = GROUPS) -> RoutingRequest:
    slots = capacity(factor, len(case.tokens) // groups, case.router.config.num_experts, top_k)
    return RoutingRequest(groups=groups, length=LENGTH, top_k=top_k, factor=factor, slots=slots)


@dataclass
class Answer:
    y: Tensor  # (T, C)
    losses: dict[str, Tensor]
    load: list[int]
    dropped: int
    entropy: float


def answer(case: Case, call: RoutingRequest, *, padded: bool = False) -> Answer:
    """By the code under test."""
    routing = case.router(case.tokens, case.keys, call)
    plan = routing.plan(groups=call.groups, slots=call.slots, padded=padded).settled(None)
    rows = plan.dispatch(case.tokens)
    pieces = [case.expert(e, piece) for e, piece in enumerate(rows.split(plan.counts.tolist()))]
    assert len(rows) <= plan.rows_bound
    assert len(plan.keys(case.keys)) == len(rows)
    if plan.static_count is not None:
        assert plan.counts.tolist() == [plan.static_count] * len(plan.counts)
    y = plan.combine(torch.cat(pieces))
    return Answer(y, routing.losses, plan.load.tolist(), int(plan.dropped), routing.entropy.item())


# The loops.


def softmax(logits: list[Tensor]) -> list[Tensor]:
    exponentials = [torch.exp(logit - max(logits).detach()) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def entropy_of(scores: list[Tensor]) -> float:
    return -sum(s.item() * math.log(s.item()) for s in scores if s.item() > 0)


def norm(x: Tensor) -> Tensor:
    return (x * x).sum().sqrt()


def logits_of(case: Case, token: Tensor) -> list[Tensor]:
    router, experts = case.router, range(case.router.config.num_experts)
    if router.config.router != "cosine":
        return [(router.weight[e] * token).sum() for e in experts]
    projector, columns = router.cosine_projector, router.sim_matrix
    p = torch.stack([(line * token).sum() for line in projector.weight]) + projector.bias
    scale = torch.exp(router.temperature[0]) if router.temperature.item() < math.log(100) else 100.0
    return [scale * (p * columns[:, e]).sum() / (norm(p) * norm(columns[:, e])) for e in experts]


def best(values: list[float], count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def choose(case: Case, call: RoutingRequest, t: int) -> tuple[list[int], list[Tensor], float, dict]:
    """Of token t: experts, gates, priority, and what the losses and the entropy look at."""
    moe, experts = case.router.config, range(case.router.config.num_experts)
    if moe.router in ("hash", "random"):
        place = sample_keys(SITE, torch.tensor([t % call.length]))
        key = place if moe.router == "hash" else fold_in(case.keys[t : t + 1], SITE)
        chosen = best(uniform(key, moe.num_experts)[0].tolist(), call.top_k)
        share = torch.tensor(1.0 / call.top_k, dtype=torch.float64)
        return chosen, [share] * call.top_k, 0.0, {"scores": [share] * call.top_k}
    logits = noisy = logits_of(case, case.tokens[t])
    if moe.router == "sigmoid":
        values = [1 / (1 + torch.exp(-logit)) for logit in logits]
        bias = [steps * moe.bias_update_rate for steps in case.router.bias_steps.tolist()]
        scores = [value / sum(values) for value in values]
    else:
        if case.router.training and moe.gate_noise:
            noise = normal(fold_in(case.keys, SITE), moe.num_experts)[t] * (moe.gate_noise / moe.num_experts)
            noisy = [logits[e] + noise[e] for e in experts]
        scores = values = softmax(noisy)
        bias = [0.0] * moe.num_experts
    chosen = best([values[e].item() + bias[e] for e in experts], call.top_k)
    gates = [values[e] for e in chosen]
    if moe.normalize_gates and not (moe.compat == "tutel" and call.top_k == 1):
        gates = [gate / sum(gates) for gate in gates]
    facts = {"logits": logits, "threshold": noisy[chosen[-1]], "scores": scores, "first": chosen[0]}
    return chosen, gates, max(value.item() for value in values), facts


def choose_by_expert(case: Case, call: RoutingRequest, group: range) -> dict[int, tuple]:
    """What `choose` gives, for the tokens of a group in a router where experts choose."""
    facts = {}
    for t in group:
        logits = logits_of(case, case.tokens[t])
        facts[t] = {"logits": logits, "scores": softmax(logits)}
    taken: dict[int, list[int]] = {t: [] for t in group}
    for e in range(case.router.config.num_experts):
        for i in best([facts[t]["scores"][e].item() for t in group], call.slots):
            taken[group[i]].append(e)
    return {t: (taken[t], [facts[t]["scores"][e] for e in taken[t]], 0.0, facts[t]) for t in group}


def variation(totals: list[Tensor], tutel: bool) -> Tensor:
    mean = sum(totals) / len(totals)
    squares = sum((total - mean) ** 2 for total in totals)
    return squares / (len(totals) - 1) / (mean**2 + 1e-10) if tutel else squares / len(totals) / mean**2


def balance_of(moe: MoEConfig, facts: list[dict]) -> Tensor:
    """Of one group."""
    experts, tutel = range(moe.num_experts), moe.compat == "tutel"
    if moe.balance == "gshard":
        shares = [sum(fact["first"] == e for fact in facts) / len(facts) for e in experts]
        means = [sum(fact["scores"][e] for fact in facts) / len(facts) for e in experts]
        return moe.num_experts * sum(share * mean for share, mean in zip(shares, means, strict=True))
    clean = [softmax(fact["logits"]) for fact in facts]
    importance = variation([sum(scores[e] for scores in clean) for e in experts], tutel)
    if moe.balance == "importance":
        return importance
    std, load = moe.gate_noise / moe.num_experts, []
    for e in experts:
        chances = []
        for fact, scores in zip(facts, clean, strict=True):
            lead = (scores[e] if tutel else fact["logits"][e]) - fact["threshold"]
            chances.append(0.5 * (1 + torch.erf(lead / std / math.sqrt(2))))
        load.append(sum(chances))
    return (importance + variation(load, tutel)) / 2


def reference(case: Case, call: RoutingRequest) -> Answer:
    moe = case.router.config
    if moe.router == "soft":
        return soft_reference(case, call.length)
    y = [torch.zeros(DIM, dtype=torch.float64) for _ in case.tokens]
    load, dropped, entropy, balance, z = [0] * moe.num_experts, 0, 0.0, [], []
    size = len(case.tokens) // call.groups
    for first in range(0, len(case.tokens), size):
        group = range(first, first + size)
        if moe.router == "expert_choice":
            choices = choose_by_expert(case, call, group)
            dropped += sum(not choices[t][0] for t in group)
        else:
            choices = {t: choose(case, call, t) for t in group}
        prioritized = moe.batch_prioritized and moe.router in ("linear", "cosine", "sigmoid")
        queue = sorted(group, key=lambda t, c=choices, p=prioritized: (-c[t][2] if p else 0.0, t))
        used = [0] * moe.num_experts
        for choice in range(moe.num_experts):
            for t in queue:
                chosen, gates, _, _ = choices[t]
                if choice >= len(chosen):
                    continue
                e = chosen[choice]
                load[e] += 1
                if used[e] >= call.slots:
                    dropped += 1
                    continue
                used[e] += 1
                y[t] = y[t] + gates[choice] * case.expert(e, case.tokens[t])
        facts = [choices[t][3] for t in group]
        entropy += sum(entropy_of(fact["scores"]) for fact in facts)
        if moe.balance != "none":
            balance.append(balance_of(moe, facts))
        if moe.z_loss_weight:
            z += [torch.log(sum(torch.exp(logit) for logit in fact["logits"])) ** 2 for fact in facts]
    losses = {}
    if case.router.training and balance:
        losses["balance"] = sum(balance) / len(balance)
    if case.router.training and z:
        losses["z"] = sum(z) / len(z)
    return Answer(torch.stack(y), losses, load, dropped, entropy / len(case.tokens))


def soft_reference(case: Case, length: int) -> Answer:
    moe, router = case.router.config, case.router
    slots = moe.num_experts * moe.slots_per_expert
    columns = [router.scale[0] * router.phi[:, s] / norm(router.phi[:, s]) for s in range(slots)]
    y, z, entropy = [], [], 0.0
    for first in range(0, len(case.tokens), length):
        image = case.tokens[first : first + length]
        logits = [[(token / norm(token) * column).sum() for column in columns] for token in image]
        answers = []
        for s in range(slots):
            weights = softmax([line[s] for line in logits])
            mixed = sum(weight * token for weight, token in zip(weights, image, strict=True))
            answers.append(case.expert(s // moe.slots_per_expert, mixed))
        for line in logits:
            weights = softmax(line)
            y.append(sum(weight * slot for weight, slot in zip(weights, answers, strict=True)))
            p = moe.slots_per_expert
            entropy += entropy_of([sum(weights[e * p : (e + 1) * p]) for e in range(moe.num_experts)])
            z.append(torch.log(sum(torch.exp(logit) for logit in line)) ** 2)
    losses = {"z": sum(z) / len(z)} if router.training and moe.z_loss_weight else {}
    load = [len(case.tokens) // length * moe.slots_per_expert] * moe.num_experts
    return Answer(torch.stack(y), losses, load, 0, entropy / len(case.tokens))
