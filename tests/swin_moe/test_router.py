"""The linear router against a softmax worked by hand, its ties, its precision and its noise."""

import math

import pytest
import torch

from swin_moe.config import MoEConfig
from swin_moe.randomness import fork, normal, sample_keys
from swin_moe.router import CosineTopKRouter, LinearTopKRouter, Routing


def router(weight: list[list[float]], **options: object) -> LinearTopKRouter:
    config = MoEConfig(blocks=(), num_experts=len(weight), **options)
    layer = LinearTopKRouter(len(weight[0]), config, site=3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def route(layer: LinearTopKRouter, tokens: torch.Tensor) -> Routing:
    return layer(tokens, sample_keys(0, torch.arange(len(tokens))))


@pytest.mark.parametrize(("normalize", "gates"), [(False, [4 / 7, 2 / 7]), (True, [2 / 3, 1 / 3])])
def test_softmax_by_hand(normalize: bool, gates: list[float]) -> None:
    """Logits (0, ln 4, ln 2): scores 1/7, 4/7, 2/7. The two best are experts 1 and 2; normalised 2/3, 1/3."""
    layer = router([[0.0], [math.log(4)], [math.log(2)]], top_k=2, normalize_gates=normalize).eval()
    routing = route(layer, torch.ones(1, 1))
    torch.testing.assert_close(routing.scores, torch.tensor([[1 / 7, 4 / 7, 2 / 7]]))
    assert routing.expert_index.tolist() == [[1, 2]]
    torch.testing.assert_close(routing.gates, torch.tensor([gates]))


def test_ties_go_to_the_lower_expert() -> None:
    layer = router([[1.0], [2.0], [2.0], [1.0], [2.0]], top_k=4).eval()
    assert route(layer, torch.ones(1, 1)).expert_index.tolist() == [[1, 2, 4, 0]]
    even = router([[1.0]] * 128, top_k=3).eval()  # enough for a sort that is not stable to show
    assert route(even, torch.ones(50, 1)).expert_index.tolist() == [[0, 1, 2]] * 50


def test_routing_is_fp32_in_a_half_precision_model_and_under_autocast() -> None:
    """bf16 has 8 bits: 1 + 2^-9 would tie with 1. Tokens (1, 2^-9) and weights (1, 0), (1, 1) do not tie."""
    layer = router([[1.0, 0.0], [1.0, 1.0]]).bfloat16().eval()
    tokens = torch.tensor([[1.0, 2.0**-9]]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = route(layer, tokens)
    assert routing.scores.dtype == routing.gates.dtype == torch.float32
    assert routing.expert_index.tolist() == [[1]]
    expected = torch.tensor([[1.0, 1.0 + 2.0**-9]]).softmax(-1)
    torch.testing.assert_close(routing.scores, expected, rtol=1e-6, atol=0)


def test_noise_has_standard_deviation_gate_noise_over_experts() -> None:
    """With zero weights the logits are the noise, of standard deviation 2 / 4.

    The logarithm of the scores is the noise less a number a token; centred over E = 4 experts its variance is
    (1 - 1/4) * (2/4)^2 = 3/16. A sum of squares of n normals has relative deviation sqrt(2 / n).
    """
    layer = router([[0.0]] * 4, gate_noise=2.0)
    log_scores = route(layer, torch.zeros(20000, 1)).scores.log().double()
    centred = log_scores - log_scores.mean(1, keepdim=True)
    n = 3 * 20000  # three degrees of freedom a token
    assert abs(centred.square().mean() / (3 / 16) - 1) < 4 * math.sqrt(2 / n)


def test_noise_is_the_keyed_draw_of_the_routers_site() -> None:
    layer = router([[1.0], [2.0], [3.0]], gate_noise=1.5)
    tokens, keys = torch.tensor([[0.5], [-1.0]]), sample_keys(5, torch.arange(2))
    logits = tokens * torch.tensor([[1.0, 2.0, 3.0]]) + normal(fork(keys, 3), 3) * (1.5 / 3)
    torch.testing.assert_close(layer(tokens, keys).scores, logits.softmax(-1))
    assert torch.equal(
        layer.eval()(tokens, keys).scores, (tokens * torch.tensor([[1.0, 2.0, 3.0]])).softmax(-1)
    )


def test_cosine_logits_by_plain_loops() -> None:
    """cos(projection of the token, vector of the expert) times exp(min(temperature, log 100))."""
    config = MoEConfig(blocks=((0,),), num_experts=3, router="cosine", gate_noise=0.0)
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
