"""Routers against numbers worked by hand: scores, ties, precision, noise, order, biases, draws."""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.moe.routers import ROUTERS
from swin_moe.moe.routers.base import Router, Routing, RoutingRequest
from swin_moe.moe.routers.topk import CosineTopKRouter, SigmoidTopKRouter
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import fold_in, normal, sample_keys


def make_router(weight: list[list[float]], name: str = "linear", **options: object) -> Router:
    quiet = {"eval_capacity_factor": 1.0, "num_experts": len(weight)}
    layer = ROUTERS[name](len(weight[0]), MoEConfig(blocks=(), router=name, **(quiet | options)), 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def route(
    layer: Router, tokens: Tensor, *, groups: int = 1, slots: int = 1, top_k: int | None = None
) -> Routing:
    """With 1 token an image, and the configuration's top_k."""
    keys = sample_keys(0, torch.arange(len(tokens)))
    top_k = layer.config.top_k if top_k is None else top_k
    return layer(tokens, keys, RoutingRequest(groups=groups, length=1, top_k=top_k, factor=1.0, slots=slots))


def log(*scores: float) -> list[list[float]]:
    """Weights of one channel that give a token of 1 these scores, up to their sum."""
    return [[math.log(score)] for score in scores]


@pytest.mark.parametrize(("normalize", "gates"), [(False, [4 / 7, 2 / 7]), (True, [2 / 3, 1 / 3])])
def test_softmax_by_hand(normalize: bool, gates: list[float]) -> None:
    """Scores 1/7, 4/7, 2/7: the two best are experts 1 and 2; normalised 2/3, 1/3."""
    routing = route(make_router(log(1, 4, 2), top_k=2, normalize_gates=normalize).eval(), torch.ones(1, 1))
    assert routing.expert_index.tolist() == [[1, 2]]
    torch.testing.assert_close(routing.gates, torch.tensor([gates]))
    entropy = -sum(p * math.log(p) for p in (1 / 7, 4 / 7, 2 / 7))
    assert routing.entropy.item() == pytest.approx(entropy, rel=1e-6)


def test_tutel_normalises_two_gates_and_more() -> None:
    """Scores 2/3, 1/3: one gate is 2/3 as Tutel has it and 1 as everyone else, two are 2/3, 1/3 in both."""
    for compat, one in (("tutel", 2 / 3), ("none", 1.0)):
        layer = make_router(log(4, 2), normalize_gates=True, compat=compat).eval()
        torch.testing.assert_close(route(layer, torch.ones(1, 1)).gates, torch.tensor([[one]]))
        torch.testing.assert_close(
            route(layer, torch.ones(1, 1), top_k=2).gates, torch.tensor([[2 / 3, 1 / 3]])
        )


def test_top_k_of_the_call_counts() -> None:
    layer = make_router(log(1, 4, 2), top_k=1).eval()
    for top_k, index in ((1, [1]), (2, [1, 2]), (3, [1, 2, 0])):
        assert route(layer, torch.ones(1, 1), top_k=top_k).expert_index.tolist() == [index]


@pytest.mark.parametrize("name", ["linear", "sigmoid"])
def test_ties_go_to_the_lower_expert(name: str) -> None:
    layer = make_router([[1.0], [2.0], [2.0], [1.0], [2.0]], name, top_k=4).eval()
    assert route(layer, torch.ones(1, 1)).expert_index.tolist() == [[1, 2, 4, 0]]
    even = make_router([[1.0]] * 128, name, top_k=3).eval()  # enough for a sort that is not stable to show
    assert route(even, torch.ones(50, 1)).expert_index.tolist() == [[0, 1, 2]] * 50


def test_the_choice_sees_what_the_softmax_rounds_away() -> None:
    """Logits 0, -200, -150: both last scores are 0 in fp32, the third is still the second best."""
    routing = route(make_router([[0.0], [-200.0], [-150.0]], top_k=2).eval(), torch.ones(1, 1))
    assert routing.expert_index.tolist() == [[0, 2]]
    assert routing.gates.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("name", ["linear", "sigmoid", "expert_choice"])
def test_routing_is_fp32_in_a_half_precision_model_and_under_autocast(name: str) -> None:
    """bf16 has 8 bits: 1 + 2^-9 would tie with 1. Tokens (1, 2^-9) and weights (1, 0), (1, 1) do not tie."""
    layer = make_router([[1.0, 0.0], [1.0, 1.0]], name).bfloat16().eval()
    tokens = torch.tensor([[1.0, 2.0**-9]]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = route(layer, tokens)
    assert routing.gates.dtype == torch.float32
    assert routing.expert_index[0, 0].item() == 1
    logits = torch.tensor([1.0, 1.0 + 2.0**-9])
    expected = logits.sigmoid()[1] if name == "sigmoid" else logits.softmax(-1)[1]
    torch.testing.assert_close(routing.gates[0, 0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_fp64_stays_fp64(name: str) -> None:
    config = MoEConfig(blocks=(), num_experts=2, router=name, eval_capacity_factor=1.0)
    layer = ROUTERS[name](3, config, 0).double()
    routing = route(layer, torch.ones(4, 3, dtype=torch.float64))
    assert (routing.mix_in if name == "soft" else routing.gates).dtype == torch.float64


# Noise.


def test_noise_has_standard_deviation_gate_noise_over_experts() -> None:
    """With zero weights the logits are the noise, of standard deviation 2 / 4.

    All E = 4 gates tell the scores, whose logarithm is the noise less a number a token; centred over the
    experts its variance is (1 - 1/4) * (2/4)^2 = 3/16. A sum of squares of n normals has relative deviation
    sqrt(2 / n).
    """
    routing = route(make_router([[0.0]] * 4, gate_noise=2.0, top_k=4), torch.zeros(20000, 1))
    log_scores = routing.gates.log().double()
    centred = log_scores - log_scores.mean(1, keepdim=True)
    n = 3 * 20000  # three degrees of freedom a token
    assert abs(centred.square().mean() / (3 / 16) - 1) < 4 * math.sqrt(2 / n)


def test_noise_is_the_keyed_draw_of_the_routers_site_in_training_only() -> None:
    layer = make_router([[1.0], [2.0], [3.0]], gate_noise=1.5, top_k=3)
    tokens, keys = torch.tensor([[0.5], [-1.0]]), sample_keys(0, torch.arange(2))
    clean = tokens * torch.tensor([[1.0, 2.0, 3.0]])
    noisy = clean + normal(fold_in(keys, 3), 3) * (1.5 / 3)
    for logits, routing in ((noisy, route(layer, tokens)), (clean, route(layer.eval(), tokens))):
        scores = torch.zeros(2, 3).scatter(1, routing.expert_index, routing.gates)
        torch.testing.assert_close(scores, logits.softmax(-1))


# Order of service.


def served(scores: list[float], *, prioritized: bool) -> list[int]:
    """Tokens of two groups of 3 in the order in which they are served: logits (x, 0) for expert 0."""
    layer = make_router([[1.0], [0.0]], batch_prioritized=prioritized).eval()
    return route(layer, torch.tensor(scores)[:, None], groups=2).priority.flatten().tolist()


def test_order_by_hand() -> None:
    """A token's priority is its larger score, that of |x|: 3 2 3 in one group, 1 2 2 in the other."""
    scores = [3.0, 2.0, -3.0, 1.0, -2.0, 2.0]
    assert served(scores, prioritized=False) == [0, 1, 2, 3, 4, 5]
    assert served(scores, prioritized=True) == [0, 2, 1, 4, 5, 3]


def test_first_choices_of_all_come_before_second_ones() -> None:
    layer = make_router([[1.0], [0.0]], top_k=2).eval()
    priority = route(layer, torch.tensor([[1.0], [2.0]])).priority
    assert priority.tolist() == [[[2, 0], [3, 1]]]  # token 1 is surer; choice c of token t is 2 * t + c


# Cosine.


def test_cosine_logits_by_plain_loops() -> None:
    """cos(projection of the token, vector of the expert) times exp(min(temperature, log 100))."""
    config = MoEConfig(blocks=((0,),), num_experts=3, router="cosine", gate_noise=0.5)
    for temperature in (CosineTopKRouter.start, 9.0):  # e^9 is far above the bound of 100
        layer = CosineTopKRouter(5, config, site=0)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(generator=generator)
            layer.temperature.fill_(temperature)
        tokens = torch.randn(4, 5, generator=generator)
        scale = min(math.exp(temperature), 100.0)
        logits = layer.logits(tokens)
        for t in range(4):
            projected = layer.cosine_projector.weight @ tokens[t] + layer.cosine_projector.bias
            for e in range(3):
                expert = layer.sim_matrix[:, e]
                cosine = (projected * expert).sum() / (projected.norm() * expert.norm())
                assert logits[t, e].item() == pytest.approx(scale * cosine.item(), rel=1e-4, abs=1e-5)


def test_cosine_router_starts_as_the_reference() -> None:
    """Temperature 1 / 0.5 = 2, kept as log 2; 256 x (C + 1) + 256 x E + 1 numbers."""
    config = MoEConfig(blocks=((0,),), num_experts=8, router="cosine")
    layer = CosineTopKRouter(12, config, site=0)
    assert layer.temperature.exp().item() == pytest.approx(2.0)
    assert sum(p.numel() for p in layer.parameters()) == 256 * 13 + 256 * 8 + 1


# Sigmoid.


def sigmoid_router(*scores: float, **options: object) -> SigmoidTopKRouter:
    """Whose scores for a token of 1 are these."""
    return make_router([[math.log(s / (1 - s))] for s in scores], "sigmoid", **options)


@pytest.mark.parametrize(("normalize", "gates"), [(False, [0.5, 0.6]), (True, [5 / 11, 6 / 11])])
def test_the_bias_chooses_and_the_score_weighs(normalize: bool, gates: list[float]) -> None:
    """Scores .6, .3, .5, biases 0, .1, .2: .6, .4, .7. Experts 2 and 0 are chosen, with gates .5 and .6."""
    layer = sigmoid_router(0.6, 0.3, 0.5, top_k=2, bias_update_rate=0.1, normalize_gates=normalize)
    layer.bias_steps.copy_(torch.tensor([0, 1, 2]))
    routing = route(layer, torch.ones(1, 1))
    assert routing.expert_index.tolist() == [[2, 0]]
    torch.testing.assert_close(routing.gates, torch.tensor([gates]))
    shares = (6 / 14, 3 / 14, 5 / 14)
    assert routing.entropy.item() == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-6)
    assert routing.losses == {}


def test_bias_moves_by_one_towards_the_mean_load() -> None:
    """Loads 5, 1, 3, 3: the mean is 3. Loads 1, 1, 1, 0: the mean is 3/4, no integer."""
    layer = sigmoid_router(0.5, 0.5, 0.5, 0.5)
    layer.update_router_bias(torch.tensor([5, 1, 3, 3]))
    assert layer.bias_steps.tolist() == [-1, 1, 0, 0]
    layer.update_router_bias(torch.tensor([1, 1, 1, 0]))
    assert layer.bias_steps.tolist() == [-2, 0, -1, 1]
    layer.update_router_bias(torch.tensor([0, 0, 0, 0]))
    assert layer.bias_steps.tolist() == [-2, 0, -1, 1]


def test_bias_is_state_that_no_cast_rounds() -> None:
    layer = sigmoid_router(0.5, 0.5)
    layer.bias_steps.copy_(torch.tensor([1001, -1003]))
    assert layer.bfloat16().state_dict()["bias_steps"].tolist() == [1001, -1003]
    assert layer.to("meta").to_empty(device="cpu").bias_steps.dtype == torch.int64
    layer.reset_buffers()
    assert layer.bias_steps.tolist() == [0, 0]


def test_balancing_evens_a_skewed_load() -> None:
    """Every token scores the two experts .7 +- .05 and .6 +- .05: without bias expert 0 takes almost all."""
    layer = make_router([[1.0, 0.0], [0.0, 1.0]], "sigmoid", bias_update_rate=0.005)
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.7, 0.6]) + 0.05 * torch.randn(1000, 2, generator=generator)
    loads = []
    for _ in range(40):
        loads.append(route(layer, scores.logit()).expert_index.flatten().bincount(minlength=2))
        layer.update_router_bias(loads[-1])
    assert loads[0][0] > 880  # the difference is .1 +- .07: 92 %
    assert abs(loads[-1][0] - 500) < 60


# Expert choice.


def test_expert_choice_by_hand() -> None:
    """Two experts of 2 slots, 4 tokens with scores for expert 0 of .9 .8 .8 .1.

    Expert 0 takes tokens 0 and 1 (of the tie the earlier), expert 1 with .1 .2 .2 .9 takes 3 and 1. So token
    1 has two experts, the surer first, token 2 none, and its choices are expert 2: no such.
    """
    layer = make_router([[1.0], [0.0]], "expert_choice")
    scores = torch.tensor([0.9, 0.8, 0.8, 0.1])
    routing = route(layer, scores.logit()[:, None], slots=2)
    assert routing.expert_index.tolist() == [[0, 2], [0, 1], [2, 2], [1, 2]]
    torch.testing.assert_close(
        routing.gates, torch.tensor([[0.9, 0.0], [0.8, 0.2], [0.0, 0.0], [0.9, 0.0]]), rtol=1e-6, atol=1e-7
    )
    plan = routing.plan(groups=1, slots=2, padded=False).settled(None)
    assert (plan.counts.tolist(), plan.load.tolist(), plan.dropped.item()) == ([2, 2], [2, 2], 1)


def test_expert_choice_in_groups() -> None:
    """One slot in each of two groups: expert 0 takes the larger of .9 .8 and .2 .1, expert 1 the rest."""
    layer = make_router([[1.0], [0.0]], "expert_choice")
    routing = route(layer, torch.tensor([0.9, 0.8, 0.2, 0.1]).logit()[:, None], groups=2)
    assert routing.expert_index.tolist() == [[0], [1], [0], [1]]


# Hash and random.


def drawn(name: str, keys: Tensor, *, length: int, top_k: int, site: int = 3) -> Tensor:
    layer = ROUTERS[name](1, MoEConfig(blocks=(), num_experts=8, router=name), site)
    call = RoutingRequest(groups=1, length=length, top_k=top_k, factor=0.0, slots=len(keys))
    routing = layer(torch.zeros(len(keys), 1), keys, call)
    assert torch.equal(layer.eval()(torch.zeros(len(keys), 1), keys, call).expert_index, routing.expert_index)
    assert not list(layer.parameters())
    assert (routing.gates == 1 / top_k).all()
    return routing.expert_index


@pytest.mark.parametrize("name", ["hash", "random"])
def test_drawn_experts_are_distinct_and_even(name: str) -> None:
    """Each of 8 experts is one of 3 choices of 3/8 of n = 4000 tokens; 5 deviations of a binomial."""
    keys = sample_keys(1, torch.arange(4000))
    index = drawn(name, keys, length=4000, top_k=3)
    assert (index.sort(dim=1).values.diff(dim=1) > 0).all()
    p = 3 / 8
    assert (
        (index.flatten().bincount(minlength=8) - 4000 * p).abs() < 5 * math.sqrt(4000 * p * (1 - p))
    ).all()


def test_hash_depends_on_the_place_and_random_on_the_key() -> None:
    keys, others = sample_keys(1, torch.arange(60)), sample_keys(2, torch.arange(60))
    hashed = drawn("hash", keys, length=20, top_k=2)
    assert torch.equal(hashed, hashed[:20].repeat(3, 1))
    assert torch.equal(hashed, drawn("hash", others, length=20, top_k=2))
    assert not torch.equal(hashed, drawn("hash", keys, length=20, top_k=2, site=4))
    random = drawn("random", keys, length=20, top_k=2)
    assert not torch.equal(random[:20], random[20:40])
    assert not torch.equal(random, drawn("random", others, length=20, top_k=2))
    assert torch.equal(random.flip(0), drawn("random", keys.flip(0), length=20, top_k=2))


# Soft.


def test_soft_by_hand() -> None:
    """One image of two tokens (3, 0) and (0, 5), two slots (2, 0) and (0, 7), scale ln 3.

    Lengths do not count: the logits are ln 3 on the diagonal and 0 beside it. Columns and rows alike have
    the weights 3/4 and 1/4.
    """
    layer = ROUTERS["soft"](2, MoEConfig(blocks=(), num_experts=2, router="soft"), 0)
    with torch.no_grad():
        layer.phi.copy_(torch.tensor([[2.0, 0.0], [0.0, 7.0]]))
        layer.scale.fill_(math.log(3))
    call = RoutingRequest(groups=1, length=2, top_k=1, factor=1.0, slots=1)
    routing = layer(torch.tensor([[3.0, 0.0], [0.0, 5.0]]), sample_keys(0, torch.arange(2)), call)
    expected = torch.tensor([[[0.75, 0.25], [0.25, 0.75]]])
    torch.testing.assert_close(routing.mix_in, expected)
    torch.testing.assert_close(routing.mix_out, expected)
    assert routing.entropy.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-6)


def test_which_losses_are_in_force() -> None:
    """Only those with a weight, and in training."""
    for weights, names in (((0.0, 0.0), set()), ((0.1, 0.0), {"balance"}), ((0.1, 0.1), {"balance", "z"})):
        layer = make_router(log(1, 4), load_balance_weight=weights[0], z_loss_weight=weights[1])
        assert set(route(layer, torch.ones(2, 1)).losses) == names
        assert route(layer.eval(), torch.ones(2, 1)).losses == {}
