"""Models by name, and what they cost: closed forms, and the traps of counting."""

import math
from dataclasses import replace

import pytest
import torch

import swin_moe
from swin_moe import ModelConfig, ModelError, build_model
from swin_moe.backbone.flops import (
    build_on_meta,
    cost,
    count_active_parameters,
    count_flops,
    count_parameters,
)
from swin_moe.recipes import list_models, load_model_config
from tests.models import small_moe, small_swin

TINY = "swin_tiny_patch4_window7_224"
TOY = small_swin(moe=small_moe(blocks=((), (1,)), routing_group_images=8))
DENSE = replace(TOY, moe=None)


# FLOPs.


def closed_form(config: ModelConfig) -> int:
    """Multiply-adds of one image, from the architecture; MoE layers as top_k MLPs and a router."""
    c, p = config.embed_dim, config.patch_size
    height, width = config.image_sides
    total = (height // p) * (width // p) * 3 * p * p * c
    for stage, depth in enumerate(config.depths):
        tokens = math.prod(-(-side // (p * 2**stage)) for side in (height, width))
        if stage:
            total += tokens * 4 * c * 2 * c
            c *= 2
        n = math.prod(min(config.window_size, side // (p * 2**stage)) for side in (height, width))
        mlp = 2 * tokens * c * 4 * c
        for block in range(depth):
            total += tokens * c * 4 * c + 2 * tokens * n * c  # qkv and output; q k^T and the product with v
            if config.is_moe_block(stage, block):
                total += config.moe.top_k * mlp + tokens * c * config.moe.num_experts
            else:
                total += mlp
    return total + c * config.num_classes


@pytest.mark.parametrize(
    "config",
    [
        DENSE,
        replace(DENSE, position_bias="log_cpb"),
        replace(DENSE, attention="cosine", position_bias="log_cpb", norm="post"),
        TOY,
        replace(TOY, moe=replace(TOY.moe, top_k=2)),
        replace(TOY, moe=replace(TOY.moe, num_experts=64, capacity_factor=0.5)),
        replace(TOY, image_size=(32, 64)),
        replace(DENSE, image_size=(64, 8), position_bias="log_cpb"),
    ],
    ids=["swin", "log_cpb", "swinv2", "moe", "top2", "many_experts", "wide", "tall_windows"],
)
def test_flops_are_the_closed_form(config: ModelConfig) -> None:
    assert cost(config).flops == closed_form(config)


def test_swin_tiny_by_hand() -> None:
    """The exact number, in thousands of multiply-adds: 56 x 56 tokens of 96 channels and so on, as above."""
    assert cost(load_model_config(TINY)).flops == closed_form(load_model_config(TINY)) == 4_490_566_656


def test_windows_that_do_not_fit_cost_their_padding() -> None:
    """32 pixels are 8 x 8 tokens; window 5 pads them to 10 x 10, in attention only."""
    config = replace(DENSE, depths=(1,), num_heads=(2,), window_size=5)
    tokens, padded, c = 64, 100, 8
    expected = tokens * 48 * c + padded * (4 * c * c + 2 * 25 * c) + 2 * tokens * 4 * c * c + c * 5
    assert cost(config).flops == expected


def test_counting_calls_no_process_group_and_computes_nothing() -> None:
    model = build_on_meta(TOY)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    count_flops(model)


# Parameters.


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_active_parameters_leave_out_the_experts_that_a_token_does_not_meet(top_k: int) -> None:
    """An expert of stage 1 has 16 * 64 + 64 + 64 * 16 + 16 = 2128 parameters; 4 - k of them are idle."""
    model = build_on_meta(replace(TOY, moe=replace(TOY.moe, top_k=top_k)))
    assert count_parameters(model) - count_active_parameters(model) == (4 - top_k) * 2128


def test_a_dense_model_is_active_whole() -> None:
    model = build_on_meta(DENSE)
    assert count_active_parameters(model) == count_parameters(model)


# Names.


def test_build_by_name() -> None:
    """In one process, without a process group."""
    model = build_model(TINY, num_classes=3, depths=[1, 1, 1, 1], seed=5)
    config = load_model_config(TINY, num_classes=3, depths=(1, 1, 1, 1))
    assert model.config == config
    same = swin_moe.backbone.model.build_model(config, seed=5).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert model(torch.zeros(2, 3, 224, 224)).logits.shape == (2, 3)
    assert TINY in list_models()
    assert "imagenet1k" not in list_models()


def test_overrides_reach_into_the_experts() -> None:
    assert load_model_config(TOY, moe={"top_k": 2}) == replace(TOY, moe=replace(TOY.moe, top_k=2))
    assert load_model_config(DENSE, moe=TOY.moe) == TOY
    assert load_model_config(TOY, moe=None) == DENSE
    assert load_model_config(TOY, mlp_ratio=3).mlp_ratio == 3.0
    assert load_model_config(TOY) == TOY


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "swinv2_tiny_patch4_window8_224",
            {},
            "no model is called 'swinv2_tiny_patch4_window8_224'; did you mean "
            "swinv2_tiny_patch4_window8_256 or ",
        ),
        ("vgg16", {}, "no model is called 'vgg16'; swin_moe.list_models() names them all"),
        (TINY, {"num_clases": 3}, "model.num_clases: no such option; did you mean model.num_classes?"),
        (TINY, {"window_size": 7.0}, "model.window_size: Input should be a valid integer (got 7.0)"),
        (TINY, {"qkv_bias": 1}, "model.qkv_bias: Input should be a valid boolean (got 1)"),
        (TINY, {"depths": 2}, "model.depths: Input should be a valid list (got 2)"),
        (
            TINY,
            {"depths": [2, 2, "x", 2], "window_size": object},
            "model.depths[2]: Input should be a valid integer, unable to parse string as an integer (got 'x')"
            "; model.window_size: Input should be a valid integer",
        ),
        (TINY, {"attention": "cos"}, "model.attention: Input should be 'dot', 'cosine', 'mlp' or "),
        (TINY, {"moe": {"top_k": 2}}, "model.moe.blocks: required, but not given"),
        (TINY, {"moe": 3}, "model.moe: Input should be a mapping of options (got 3)"),
        (TINY, {"embed_dim": 97}, "model.num_heads[0] (3) must divide the width of stage 0 (97)"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model_config(name, **overrides)
    assert str(caught.value).startswith(message)
