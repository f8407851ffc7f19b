"""Files as microsoft/Swin-Transformer writes them: names and layouts by hand, values random."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from swin_moe import ModelConfig, SwinTransformer, build_model
from tests.models import V2, randomize, small_moe, small_swin

# Two stages of 6 x 6 and 3 x 3 tokens with windows of 3: one shifted block; two blocks, then one.
SWIN = small_swin(image_size=24, depths=(2, 1), window_size=3, mlp_ratio=3.0)
SWIN_V2 = replace(SWIN, **V2)
SWIN_MLP = replace(SWIN, attention="mlp")
SWIN_MOE = replace(SWIN, position_bias="log_cpb", mlp_fc2_bias=False, moe=small_moe())
BLOCKS = ((0, 0), (0, 1), (1, 0))

# official name, ours
TOP = """
patch_embed.proj.weight             patch_embed.proj.weight
patch_embed.proj.bias               patch_embed.proj.bias
patch_embed.norm.weight             patch_embed.norm.weight
patch_embed.norm.bias               patch_embed.norm.bias
layers.0.downsample.norm.weight     layers.1.merge.norm.weight
layers.0.downsample.norm.bias       layers.1.merge.norm.bias
layers.0.downsample.reduction.weight layers.1.merge.reduction.weight
norm.weight                         norm.weight
norm.bias                           norm.bias
head.weight                         head.weight
head.bias                           head.bias
"""
NORMS = """
norm1.weight  norm1.weight
norm1.bias    norm1.bias
norm2.weight  norm2.weight
norm2.bias    norm2.bias
"""
ATTENTION = """
attn.qkv.weight   attention.qkv.weight
attn.proj.weight  attention.proj.weight
attn.proj.bias    attention.proj.bias
"""
TABLE = """
attn.qkv.bias                      attention.qkv.bias
attn.relative_position_bias_table  attention.position_bias.relative_position_bias_table
"""
LOG_CPB = """
attn.cpb_mlp.0.weight  attention.position_bias.cpb_mlp.0.weight
attn.cpb_mlp.0.bias    attention.position_bias.cpb_mlp.0.bias
attn.cpb_mlp.2.weight  attention.position_bias.cpb_mlp.2.weight
"""
COSINE = """
attn.q_bias       attention.q_bias
attn.v_bias       attention.v_bias
attn.logit_scale  attention.logit_scale
"""
QKV_BIAS = "attn.qkv.bias attention.qkv.bias\n"
SPATIAL = """
spatial_mlp.weight  attention.spatial_mlp.weight
spatial_mlp.bias    attention.spatial_mlp.bias
"""
FC = """
mlp.fc1.weight  mlp.fc1.weight
mlp.fc1.bias    mlp.fc1.bias
mlp.fc2.weight  mlp.fc2.weight
"""
FC2_BIAS = "mlp.fc2.bias mlp.fc2.bias\n"
BLOCK = {
    "swin": NORMS + ATTENTION + TABLE + FC + FC2_BIAS,
    "swinv2": NORMS + ATTENTION + LOG_CPB + COSINE + FC + FC2_BIAS,
    "swin_mlp": NORMS + SPATIAL + FC + FC2_BIAS,
    "swin_moe": NORMS + ATTENTION + QKV_BIAS + LOG_CPB + FC,
    "experts": NORMS + ATTENTION + QKV_BIAS + LOG_CPB,
}
CONFIGS = {"swin": SWIN, "swinv2": SWIN_V2, "swin_mlp": SWIN_MLP, "swin_moe": SWIN_MOE}


def rows(text: str) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[1]) for line in text.splitlines() if line]


def randomized(config: ModelConfig, seed: int = 1, **options: int) -> SwinTransformer:
    """A model whose every tensor is random, norms and biases too."""
    return randomize(build_model(config, **options), seed=seed).eval()


def state(model: SwinTransformer) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def official(model: SwinTransformer, kind: str) -> dict[str, Tensor]:
    """A model's weights as the official code saves them, its experts as Tutel does; with buffers."""
    ours, tensors = state(model), {}
    for theirs, name in rows(TOP):
        tensors[theirs] = ours[name]
    for stage, block in BLOCKS:
        place = f"layers.{stage}.blocks.{block}."
        has_experts = kind == "swin_moe" and (stage, block) in ((0, 1), (1, 0))
        for theirs, name in rows(BLOCK["experts" if has_experts else kind]):
            tensors[place + theirs] = ours[place + name]
        if has_experts:
            tensors |= tutel(place, ours)
        if kind != "swin_mlp":
            tensors[place + "attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
        if kind in ("swinv2", "swin_moe"):
            tensors[place + "attn.relative_coords_table"] = coordinates(3, 3)
    tensors["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    return tensors


def coordinates(window: int, pretrained: int) -> Tensor:
    """Liu et al. 2022, equation 4, number by number."""
    axis = [8 * d / (pretrained - 1) for d in range(1 - window, window)]
    axis = [math.copysign(math.log2(abs(d) + 1) / math.log2(8), d) for d in axis]
    return torch.tensor([[[[a, b] for b in axis] for a in axis]])


def tutel(place: str, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """fc1_w is (E, H, C), ours (E, C, H); the fc2 bias is there always, and zero where ours has none."""
    layer, experts = f"{place}mlp._moe_layer.", f"{place}mlp.experts."
    width = ours[experts + "fc2_weight"].shape[2]
    return {
        layer + "gates.0.wg.weight": ours[f"{place}mlp.router.weight"],
        layer + "experts.batched_fc1_w": ours[experts + "fc1_weight"].transpose(1, 2).contiguous(),
        layer + "experts.batched_fc2_w": ours[experts + "fc2_weight"],
        layer + "experts.batched_fc1_bias": ours[experts + "fc1_bias"],
        layer + "experts.batched_fc2_bias": ours.get(experts + "fc2_bias", torch.zeros(4, width)),
        layer + "_num_global_experts": torch.tensor(4),
    }


def assert_same(model: SwinTransformer, other: SwinTransformer) -> None:
    first, second = state(model), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def cubic(old: int, new: int) -> Tensor:
    """The matrix (new, old) of cubic convolution (Keys 1981, a = -0.75) with edges repeated.

    Pixel i of the new row lies at (i + .5) * old / new - .5 of the old one, and has four neighbours there.
    """
    matrix, a = torch.zeros(new, old), -0.75
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            d = abs(at - j)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), old - 1)] += near if d <= 1 else far
    return matrix
