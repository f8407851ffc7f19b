"""Which parameters of a Swin-MoE decay, and each layer's share of the learning rate."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from launcher.config.schema import OptimConfig
from launcher.tasks.param_groups import layer_of, parameter_groups
from launcher.tasks.parameter_rules import ParameterRules
from parallel.ranks.mesh import Mesh, ParallelDims
from swin_moe.backbone.model import SwinTransformer, build_model
from swin_moe.config import ModelConfig
from swin_moe.recipes import load_model_config
from tests.models import V2, small_moe, small_swin


@pytest.mark.parametrize("position_bias", ["table", "log_cpb"])
def test_what_decays(position_bias: str) -> None:
    stage = {"depths": (2,), "num_heads": (2,), "window_size": 2, "moe": small_moe(blocks=((0,),))}
    config = small_swin(image_size=16, position_bias=position_bias, **stage)
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


class Head(nn.Module):
    """A convolution and its batch norm, as the heads of dense tasks name them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)


@pytest.mark.parametrize("position_bias", ["table", "log_cpb"])
def test_what_decays_in_dense_models(position_bias: str) -> None:
    """Biases decay, and the batch norms of heads; the released models spare norms and position biases."""
    stage = {"depths": (2,), "num_heads": (2,), "window_size": 2, "moe": small_moe(blocks=((0,),))}
    config = small_swin(image_size=16, position_bias=position_bias, **stage)
    model = nn.ModuleDict(
        {
            "encoder": build_model(config, seed=0, mesh=Mesh(dims=ParallelDims())),
            "norms": nn.ModuleDict({"0": nn.LayerNorm(4)}),
            "decode_head": Head(),
        }
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(
        model, OptimConfig(decay_rule="dense", weight_decay=0.01), ParameterRules(backbone="encoder.")
    )
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("decay", 0.01),
        ("no_decay", 0.0),
    ]
    spared = {names[parameter] for parameter in groups[1]["params"]}
    block = "encoder.layers.0.blocks.{}"
    bias = {
        "table": ["relative_position_bias_table"],
        "log_cpb": ["cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight"],
    }[position_bias]
    assert spared == {
        *(f"encoder.{norm}.{part}" for norm in ("patch_embed.norm", "norm") for part in ("weight", "bias")),
        *(f"{block.format(b)}.norm{i}.{part}" for b in (0, 1) for i in (1, 2) for part in ("weight", "bias")),
        *(f"{block.format(b)}.attention.position_bias.{name}" for b in (0, 1) for name in bias),
        "norms.0.weight",
        "norms.0.bias",
    }
    decaying = {names[parameter] for parameter in groups[0]["params"]}
    assert decaying == set(names.values()) - spared
    assert {"encoder.layers.0.blocks.1.attention.qkv.bias", "decode_head.bn.weight"} <= decaying
    assert {"encoder.layers.0.blocks.0.mlp.experts.fc1_bias", "decode_head.bn.bias"} <= decaying


def unaligned(group: dict[str, Any], names: dict[nn.Parameter, str]) -> Iterator[str]:
    """Parameters that do not begin at 16 bytes of a half-precision buffer that holds the group in order."""
    offset = 0
    for parameter in group["params"]:
        if offset * 2 % 16:
            yield names[parameter]
        offset += parameter.numel()


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
@pytest.mark.parametrize(
    ("recipe", "small"),
    [
        ("swin_tiny_patch4_window7_224", "relative_position_bias_table"),
        ("swinv2_tiny_patch4_window8_256", "logit_scale"),
    ],
)
def test_kernels_find_their_parameters_aligned(recipe: str, small: str, layer_decay: float) -> None:
    """All but the small odd ones behind each other, which are gathered, or scale; 110 and 158 were not."""
    with torch.device("meta"):
        model = SwinTransformer(load_model_config(recipe))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(layer_decay=layer_decay))
    assert sorted(names[p] for group in groups for p in group["params"]) == sorted(names.values())
    found = [name for group in groups for name in unaligned(group, names)]
    assert [name for name in found if not name.endswith(small)] == []
    assert len(found) <= 9


def test_a_group_without_parameters_is_left_out() -> None:
    (group,) = parameter_groups(nn.LayerNorm(4), OptimConfig())
    assert group["name"] == "no_decay"


SWINV2 = small_swin(**V2, extra_norm_period=2)
MOE = small_swin(
    depths=(1, 2, 1),
    num_heads=(2, 4, 8),
    position_bias="log_cpb",
    moe=small_moe(blocks=((), (1,), (0,)), router="cosine"),
)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        # two stages of two blocks: patches 0, blocks 1 to 4, head 5; merging goes with block 2
        (
            SWINV2,
            {
                "patch_embed.proj.weight": 0,
                "layers.0.blocks.0.attention.logit_scale": 1,
                "layers.0.blocks.1.mlp.fc1.weight": 2,
                "layers.0.blocks.1.main_norm.weight": 2,
                "layers.1.merge.reduction.weight": 2,
                "layers.1.blocks.0.attention.qkv.weight": 3,
                "layers.1.blocks.1.norm2.bias": 4,
                "norm.weight": 5,
                "head.weight": 5,
            },
        ),
        # one, two and one block: 1, 2 and 3, 4; head 5
        (
            MOE,
            {
                "patch_embed.norm.weight": 0,
                "layers.0.blocks.0.norm1.weight": 1,
                "layers.1.merge.norm.weight": 1,
                "layers.1.blocks.0.mlp.fc2.weight": 2,
                "layers.1.blocks.1.mlp.experts.fc1_weight": 3,
                "layers.1.blocks.1.mlp.router.sim_matrix": 3,
                "layers.2.merge.reduction.weight": 3,
                "layers.2.blocks.0.mlp.experts.fc2_bias": 4,
                "head.bias": 5,
            },
        ),
    ],
)
def test_layer_decay(config: ModelConfig, layers: dict[str, int]) -> None:
    """Shares 0.5^5, 0.5^4 ... 1 of the learning rate, from the patches to the head."""
    model = build_model(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5))
    found = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert found.keys() == set(names.values())
    assert set(found.values()) == {0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0}
    for name, layer in layers.items():
        assert found[name] == 0.5 ** (5 - layer), name
        assert layer_of(name, config.depths) == layer
    for group in groups:
        assert group["weight_decay"] == (0.0 if group["name"].startswith("no_decay") else 0.05)


def test_without_layer_decay_there_are_two_groups() -> None:
    groups = parameter_groups(build_model(MOE), OptimConfig())
    assert [(group["name"], group["lr_scale"]) for group in groups] == [("decay", 1.0), ("no_decay", 1.0)]


def test_the_rate_of_the_backbone() -> None:
    """By mmaction2's rule every match counts: position biases x 0.1 without decay, norms likewise."""
    config = small_swin(depths=(1, 1), num_heads=(2, 2))
    model = build_model(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optim = OptimConfig(decay_rule="dense", weight_decay=0.02, backbone_lr_scale=0.1)
    found = {
        group["name"]: (group["lr_scale"], group["weight_decay"], {names[p] for p in group["params"]})
        for group in parameter_groups(model, optim)
    }
    assert found.keys() == {"decay", "decay_backbone", "no_decay_backbone"}
    assert found["decay"] == (1.0, 0.02, {"head.weight", "head.bias"})
    assert found["no_decay_backbone"] == (
        0.1,
        0.0,
        {
            *(f"{norm}.{part}" for norm in ("patch_embed.norm", "norm") for part in ("weight", "bias")),
            *(f"layers.1.merge.norm.{part}" for part in ("weight", "bias")),
            *(
                f"layers.{s}.blocks.0.{name}"
                for s in (0, 1)
                for name in (
                    *(f"norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")),
                    "attention.position_bias.relative_position_bias_table",
                )
            ),
        },
    )
    scale, decay, others = found["decay_backbone"]
    assert (scale, decay) == (0.1, 0.02)
    assert others == set(names.values()) - found["decay"][2] - found["no_decay_backbone"][2]
    assert {"layers.0.blocks.0.attention.qkv.bias", "patch_embed.proj.weight"} <= others


def test_the_rate_of_the_backbone_and_of_layers() -> None:
    """Stages of one and of two blocks: 0.5^4 x 0.1 for the patches, 0.1 for the last norm, 1 for the head."""
    model = build_model(small_swin(depths=(1, 2), num_heads=(2, 2)))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5, backbone_lr_scale=0.1))
    found = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert found.keys() == set(names.values())
    assert found["patch_embed.proj.weight"] == pytest.approx(0.1 * 0.5**4)
    assert found["layers.1.blocks.0.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5**2)
    assert found["norm.weight"] == pytest.approx(0.1)
    assert found["head.weight"] == found["head.bias"] == 1.0
