"""The MoE layer where something is empty, full or broken: defined, no hang, and never silently wrong."""

import math

import pytest
import torch

from swin_moe.errors import ModelError
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import sample_keys
from tests.models import moe_layer
from tests.swin_moe.moe.layers import (
    DIM,
    EXPERTS,
    GROUP,
    IMAGES,
    LENGTH,
    TOP_K_ROUTERS,
    compare,
    gradients,
    keys_of,
    make_images,
    make_layer,
)

ROUTERS = (*TOP_K_ROUTERS, "expert_choice", "soft", "hash", "random")


def test_every_choice_dropped() -> None:
    """10 tokens a group over 4 experts at factor .3: int(.3 * 3) = 0 slots; only the loss is left."""
    layer = make_layer(capacity_factor=0.3, top_k=2)
    expected = compare(layer, make_images(), factor=0.3, group_images=GROUP, tolerance=1e-10)
    assert expected.dropped == 2 * IMAGES * LENGTH
    assert (expected.y == 0).all()


@pytest.mark.parametrize("factor", [0.0, 1.25])
def test_all_tokens_at_one_expert(factor: float) -> None:
    """Positive tokens and one positive router row: expert 2 gets everything, the others empty."""
    layer = make_layer(capacity_factor=factor)
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([[-1.0], [-2.0], [1.0], [-3.0]]).expand(4, DIM))
    x = make_images().detach().abs().requires_grad_()
    expected = compare(layer, x, factor=factor, group_images=GROUP, tolerance=1e-10)
    assert expected.load == [0, 0, 30, 0]
    assert expected.dropped == (0 if factor == 0 else 3 * (10 - 3))  # int(1.25 * 3) = 3 slots of 10


@pytest.mark.parametrize("router", ROUTERS)
def test_one_token(router: str) -> None:
    """One image of one token, four experts: three are empty, and their gradients are zero."""
    layer = make_layer(router=router, routing_group_images=1, capacity_factor=1.25, eval_capacity_factor=1.0)
    x = make_images(images=1)[:, :1].detach().requires_grad_()
    expected = compare(layer, x, factor=1.25, group_images=1, tolerance=1e-10)
    assert sum(expected.load) == (EXPERTS if router in ("expert_choice", "soft") else 1)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("factor", [0.9, 1.25])
def test_more_experts_than_tokens(router: str, factor: float) -> None:
    """16 experts, 10 tokens a group: ceil(10 / 16) = 1; factor .9 leaves int(.9) = 0 slots: all dropped."""
    layer = make_layer(router=router, num_experts=16, capacity_factor=factor, eval_capacity_factor=1.0)
    expected = compare(layer, make_images(), factor=factor, group_images=GROUP, tolerance=1e-10)
    if factor == 0.9 and router != "soft":
        assert expected.dropped == IMAGES * LENGTH
        assert (expected.y == 0).all()


@pytest.mark.parametrize("router", [*TOP_K_ROUTERS, "expert_choice", "soft"])
@pytest.mark.parametrize("factor", [0.0, 1.25])
@pytest.mark.parametrize("prioritized", [False, True])
def test_a_token_that_is_not_a_number_shows(router: str, factor: float, prioritized: bool) -> None:
    """It ends, every choice is counted, and output and loss say NaN instead of hiding it."""
    layer = make_layer(
        router=router,
        capacity_factor=factor if router != "expert_choice" else 1.25,
        eval_capacity_factor=1.0,
        batch_prioritized=prioritized,
        load_balance_weight=1.0,
    )
    x = make_images().detach()
    x[2, 3] = math.nan
    x.requires_grad_()
    y, stats = layer(x, keys_of())
    if router in TOP_K_ROUTERS:
        assert stats.load.sum() == IMAGES * LENGTH
        assert stats.loss.isnan()
    assert y.isnan().any() or stats.loss.isnan()
    assert any(grad.isnan().any() for grad in gradients(y, stats.loss, [x, *layer.parameters()]))


def test_no_image_at_all() -> None:
    """An empty batch gives an empty answer: a rank may have nothing to evaluate."""
    layer = make_layer().eval()
    y, stats = layer(make_images(images=0), keys_of(0))
    assert y.shape == (0, LENGTH, DIM)
    assert stats.load.tolist() == [0] * EXPERTS


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_call_cannot_ask_for_more_experts_than_there_are(top_k: int) -> None:
    with pytest.raises(ModelError, match=rf"top_k \({top_k}\) must lie in 1..num_experts \(4\)"):
        make_layer()(make_images(), keys_of(), RoutingOverrides(top_k=top_k))


@pytest.mark.parametrize("router", ["linear", "cosine", "sigmoid", "expert_choice", "soft"])
def test_fp32_at_the_widths_of_swin_moe(router: str) -> None:
    """Stage 3 of Swin-MoE-S, 4 images of 144 tokens, 384 -> 1536, 8 experts, k = 2: fp32 against fp64, 1e-5.

    The double layer routes in fp32 too: the same choices.
    """
    config = MoEConfig(
        blocks=(),
        num_experts=8,
        router=router,
        top_k=1 if router == "soft" else 2,
        routing_group_images=4,
        eval_capacity_factor=1.0,
        expert_dropout=0.0,
    )
    layer = moe_layer(config, dim=384, hidden=1536, fc2_bias=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            scale = math.sqrt(parameter.shape[-2] if parameter.dim() > 1 else 1)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / scale)
    x = torch.randn(4, 144, 384, generator=generator).requires_grad_()
    keys = sample_keys(0, torch.arange(4))
    y, stats = layer(x, keys)
    single = gradients(y, stats.loss, [x, *layer.parameters()])
    wide = x.detach().double().requires_grad_()
    y64, stats64 = layer.double()(wide, keys)
    assert torch.equal(stats.load, stats64.load)
    pairs = [(y, y64), *zip(single, gradients(y64, stats64.loss, [wide, *layer.parameters()]), strict=True)]
    for a, b in pairs:
        scale = b.abs().max()
        torch.testing.assert_close(a.double() / scale, b.double() / scale, rtol=0, atol=1e-5)
