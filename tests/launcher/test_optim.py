"""The schedule at points worked by hand, and which parameters of a Swin-MoE decay."""

import math

import pytest
from torch import nn

from launcher.optim import CosineSchedule, parameter_groups
from launcher.schema import OptimConfig
from parallel.mesh import Mesh, ParallelDims
from swin_moe.config import ModelConfig, MoEConfig
from swin_moe.model import build_model


def schedule(global_batch_size: int = 512, warmup_steps: int = 10, total_steps: int = 110) -> CosineSchedule:
    config = OptimConfig(base_lr=1.0, warmup_lr=0.1, min_lr=0.2)
    return CosineSchedule(
        config, global_batch_size=global_batch_size, warmup_steps=warmup_steps, total_steps=total_steps
    )


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),  # warm-up starts at warmup_lr
        (5, 0.55),  # 0.1 + 0.9 * 5 / 10
        (9, 0.91),
        (10, 1.0),  # its end is the peak
        (35, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2),  # a quarter: cos(pi / 4)
        (60, 0.6),  # half: cos(pi / 2) = 0, so the mean of 1.0 and 0.2
        (110, 0.2),  # the end
        (200, 0.2),  # and beyond
    ],
)
def test_warm_up_and_half_cosine(step: int, rate: float) -> None:
    assert schedule()(step) == pytest.approx(rate)


def test_the_last_step_is_one_short_of_the_end() -> None:
    # steps count from 0, so that the last of 110 is number 109: 0.2 + 0.8 * (1 + cos(0.99 pi)) / 2
    assert schedule()(109) == pytest.approx(0.2 + 0.4 * (1 + math.cos(0.99 * math.pi)))


@pytest.mark.parametrize(("batch", "factor"), [(512, 1), (1024, 2), (64, 0.125)])
def test_rates_are_scaled_by_the_global_batch(batch: int, factor: float) -> None:
    for step in (0, 5, 10, 60, 110):
        assert schedule(batch)(step) == pytest.approx(factor * schedule()(step))


def test_without_warm_up_and_warm_up_alone() -> None:
    assert schedule(warmup_steps=0)(0) == pytest.approx(1.0)
    assert schedule(warmup_steps=0, total_steps=100)(50) == pytest.approx(0.6)
    assert schedule(warmup_steps=10, total_steps=10)(9) == pytest.approx(0.91)


@pytest.mark.parametrize("position_bias", ["table", "log_cpb"])
def test_what_decays(position_bias: str) -> None:
    moe = MoEConfig(blocks=((0,),), num_experts=4)
    config = ModelConfig(
        image_size=16,
        num_classes=3,
        embed_dim=8,
        depths=(2,),
        num_heads=(2,),
        window_size=2,
        position_bias=position_bias,  # type: ignore[arg-type]
        moe=moe,
    )
    model = build_model(config, seed=0, mesh=Mesh(dims=ParallelDims()))
    names = {parameter: name for name, parameter in model.named_parameters()}
    optim = OptimConfig(weight_decay=0.07, betas=(0.8, 0.9), eps=1e-6)
    decay, plain = parameter_groups(model, optim)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.07)
    assert (plain["name"], plain["weight_decay"]) == ("no_decay", 0.0)
    for group in (decay, plain):
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)

    decaying, others = ([names[p] for p in group["params"]] for group in (decay, plain))
    assert sorted(decaying + others) == sorted(names.values())
    assert set(decaying) == {
        "patch_embed.proj.weight",
        "head.weight",
        *(f"layers.0.blocks.{b}.attention.{part}.weight" for b in (0, 1) for part in ("qkv", "proj")),
        "layers.0.blocks.0.mlp.router.weight",
        "layers.0.blocks.0.mlp.experts.fc1_weight",
        "layers.0.blocks.0.mlp.experts.fc2_weight",
        "layers.0.blocks.1.mlp.fc1.weight",
        "layers.0.blocks.1.mlp.fc2.weight",
    }
    bias = "cpb_mlp" if position_bias == "log_cpb" else "relative_position_bias_table"
    assert any(bias in name for name in others)
    two_dimensional = {name for name in others if model.get_parameter(name).dim() == 2 and bias not in name}
    assert two_dimensional == {f"layers.0.blocks.0.mlp.experts.fc{i}_bias" for i in (1, 2)}


def test_a_group_without_parameters_is_left_out() -> None:
    (group,) = parameter_groups(nn.LayerNorm(4), OptimConfig())
    assert group["name"] == "no_decay"
