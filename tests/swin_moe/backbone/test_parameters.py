"""Parameter counts: the published numbers, and a closed form of the architecture."""

from dataclasses import replace

import pytest
import torch

from parallel.experts.placement import ExpertParallel
from swin_moe import ModelConfig, MoEConfig, SwinTransformer

TINY = ModelConfig()
SMALL = replace(TINY, depths=(2, 2, 18, 2))
BASE = replace(SMALL, embed_dim=128, num_heads=(4, 8, 16, 32))
SWIN_MOE = replace(
    SMALL, image_size=192, window_size=12, num_classes=21841, position_bias="log_cpb", mlp_fc2_bias=False
)
SWIN_MOE_BASE = replace(SWIN_MOE, embed_dim=128, num_heads=(4, 8, 16, 32))
MOE_BLOCKS = ((), (), (1, 3, 5, 7, 9, 11, 13, 15, 17), (1,))


def with_experts(config: ModelConfig, num_experts: int) -> ModelConfig:
    return replace(config, moe=MoEConfig(blocks=MOE_BLOCKS, num_experts=num_experts))


def on_meta(config: ModelConfig) -> SwinTransformer:
    placement = None if config.moe is None else ExpertParallel.on_one_rank(config.moe.num_experts)
    with torch.device("meta"):
        return SwinTransformer(config, placement)


def closed_form(config: ModelConfig) -> int:
    """Parameters of the architecture, from its description."""
    c = config.embed_dim
    total = 3 * config.patch_size**2 * c + c + 2 * c  # patches: projection, bias, norm
    for stage, depth in enumerate(config.depths):
        if stage:
            total += 2 * 4 * c + 4 * c * 2 * c  # merging: norm of 4c, projection to 2c
            c *= 2
        h = config.num_heads[stage]
        rows = 1  # of the table of offsets
        for side in config.image_sides:
            rows *= 2 * min(config.window_size, side // (config.patch_size * 2**stage)) - 1
        for block in range(depth):
            total += 2 * 2 * c  # two norms
            total += c * 3 * c + 3 * c + c * c + c  # qkv and output projections with biases
            if config.position_bias == "table":
                total += rows * h
            else:
                total += 2 * 512 + 512 + 512 * h
            mlp = c * 4 * c + 4 * c + 4 * c * c + (c if config.mlp_fc2_bias else 0)
            if config.moe is not None and block in config.moe.blocks[stage]:
                total += config.moe.num_experts * (mlp + c)  # and a router row an expert
            else:
                total += mlp
    return total + 2 * c + c * config.num_classes + config.num_classes


@pytest.mark.parametrize(
    ("config", "published"),
    [(TINY, 28_288_354), (SMALL, 49_606_258), (BASE, 87_768_224)],
    ids=["tiny", "small", "base"],
)
def test_dense_parameters_are_the_published_ones(config: ModelConfig, published: int) -> None:
    """The exact numbers of torchvision and timm for 1000 classes."""
    assert closed_form(config) == published
    assert sum(parameter.numel() for parameter in on_meta(config).parameters()) == published


@pytest.mark.parametrize(
    ("config", "num_experts", "published_millions"),
    [
        (SWIN_MOE, 0, 65.8),
        (SWIN_MOE, 8, 173.3),
        (SWIN_MOE, 16, 296.1),
        (SWIN_MOE, 32, 541.8),
        (SWIN_MOE, 64, 1033),
        (SWIN_MOE, 128, 2016),
        (SWIN_MOE_BASE, 0, 109.3),
        (SWIN_MOE_BASE, 8, 300.3),
        (SWIN_MOE_BASE, 16, 518.7),
        (SWIN_MOE_BASE, 32, 955.3),
    ],
)
def test_moe_parameters_are_the_published_ones(
    config: ModelConfig, num_experts: int, published_millions: float
) -> None:
    """Swin-MoE at 22K classes: to the digits of its table, and exactly in closed form."""
    config = with_experts(config, num_experts) if num_experts else config
    count = sum(parameter.numel() for parameter in on_meta(config).parameters())
    assert count == closed_form(config)
    digits = 0 if published_millions > 1000 else 1
    assert round(count / 1e6, digits) == published_millions
