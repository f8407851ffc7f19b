"""Official, SimMIM and timm files: names and layouts from a table written by hand, values random."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from swin_moe import ModelConfig, MoEConfig, SwinTransformer, WeightsError, build_model, load_weights

# Two stages of 6 x 6 and 3 x 3 tokens with windows of 3: one shifted block; two blocks, then one.
SWIN = ModelConfig(
    image_size=24, num_classes=5, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=3, mlp_ratio=3.0
)
SWIN_V2 = replace(SWIN, attention="cosine", position_bias="log_cpb", norm="post")
SWIN_MLP = replace(SWIN, attention="mlp")
SWIN_MOE = replace(
    SWIN,
    position_bias="log_cpb",
    mlp_fc2_bias=False,
    moe=MoEConfig(blocks=((1,), (0,)), num_experts=4, routing_group_images=2),
)
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


def randomised(config: ModelConfig, seed: int = 1, **options: int) -> SwinTransformer:
    """A model whose every tensor is random, norms and biases too."""
    model, generator = build_model(config, **options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.5, generator=generator)
    return model.eval()


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


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_official_file_of_every_family(kind: str, tmp_path: Path) -> None:
    source, model = randomised(CONFIGS[kind]), build_model(CONFIGS[kind])
    tensors = official(source, kind)
    torch.save({"model": tensors, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "official.pth")
    report = load_weights(model, tmp_path / "official.pth")
    assert_same(model, source)
    assert report.format == "official"
    buffers = {n for n in tensors if n.endswith(("_index", "_mask", "coords_table", "_num_global_experts"))}
    zeros = {f"{n}[{e}]" for n in tensors if n.endswith("batched_fc2_bias") for e in range(4)}
    assert set(report.dropped) == buffers | zeros
    assert {"epoch", "optimizer"} <= set(report.beside)
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(model.eval()(images).logits, source(images).logits)


def test_a_bare_state_dict_with_the_prefix_of_data_parallelism(tmp_path: Path) -> None:
    source, model = randomised(SWIN), build_model(SWIN)
    torch.save({f"module.{n}": t for n, t in official(source, "swin").items()}, tmp_path / "x.bin")
    load_weights(model, tmp_path / "x.bin")
    assert_same(model, source)


def test_an_old_file_that_is_no_archive(tmp_path: Path) -> None:
    source, model = randomised(SWIN), build_model(SWIN)
    tensors = official(source, "swin")
    torch.save({"model": tensors}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    load_weights(model, tmp_path / "x.pth")
    assert_same(model, source)


@pytest.mark.parametrize("head", ["head.", "head.fc."])
@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_timm_with_the_merging_at_the_start_of_a_stage(kind: str, head: str, tmp_path: Path) -> None:
    source, model = randomised(CONFIGS[kind]), build_model(CONFIGS[kind])
    tensors = {
        name.replace("layers.0.downsample", "layers.1.downsample").replace("head.", head): tensor
        for name, tensor in official(source, kind).items()
    }
    torch.save(tensors, tmp_path / "timm.pth")
    assert load_weights(model, tmp_path / "timm.pth").format == "timm"
    assert_same(model, source)


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_a_simmim_file_without_classifier(kind: str, tmp_path: Path) -> None:
    source, model = randomised(CONFIGS[kind]), build_model(CONFIGS[kind])
    own_head = model.head.weight.detach().clone()
    tensors = {f"encoder.{n}": t for n, t in official(source, kind).items() if not n.startswith("head.")}
    tensors["encoder.mask_token"] = torch.randn(1, 1, 8)
    tensors |= {"decoder.0.weight": torch.randn(3072, 16, 1, 1), "decoder.0.bias": torch.randn(3072)}
    path = tmp_path / "simmim.pth"
    torch.save({"model": tensors, "scaler": {}}, path)
    with pytest.raises(WeightsError, match=r"no classifier.*head=replace"):
        load_weights(model, path)
    report = load_weights(model, path, head="replace")
    assert report.format == "SimMIM"
    assert {"decoder.0.weight", "decoder.0.bias", "encoder.mask_token"} <= set(report.dropped)
    assert any("the model's own of 5 classes stays" in change for change in report.changes)
    assert torch.equal(model.head.weight, own_head)
    with torch.no_grad():
        source.head.load_state_dict(model.head.state_dict())
    assert_same(model, source)


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


def test_a_larger_window_resizes_the_bias_table(tmp_path: Path) -> None:
    """Windows of 3 to windows of 7 and 4: each head's 5 x 5 table becomes 13 x 13 and 7 x 7."""
    source = randomised(SWIN)
    torch.save({"model": official(source, "swin")}, tmp_path / "x.pth")
    model = build_model(replace(SWIN, image_size=32, window_size=7, depths=(2, 1)))  # maps of 8 and 4
    report = load_weights(model, tmp_path / "x.pth")
    assert report.changes == [
        "position bias: window 3 resized to 7, bicubic (2 tables)",
        "position bias: window 3 resized to 4, bicubic (1 tables)",
    ]
    for stage, side in ((0, 13), (1, 7)):
        old, new = (
            m.layers[stage].blocks[0].attention.position_bias.table().detach() for m in (source, model)
        )
        weights = cubic(5, side)
        for head in range(old.shape[1]):
            expected = weights @ old[:, head].view(5, 5) @ weights.T
            torch.testing.assert_close(new[:, head].view(side, side), expected)


def test_log_cpb_needs_the_windows_that_it_learned_with(tmp_path: Path) -> None:
    """Learned with 3 and 3; the model's are 6 and 4."""
    source = randomised(SWIN_V2)
    torch.save({"model": official(source, "swinv2")}, tmp_path / "x.pth")
    larger = replace(SWIN_V2, image_size=32, window_size=6)
    expected = r"windows of \[3, 3\], the model's are \[6, 4\]: set model.pretrained_window_sizes=\[3, 3\]"
    with pytest.raises(WeightsError, match=expected):
        load_weights(build_model(larger), tmp_path / "x.pth")
    model = build_model(replace(larger, pretrained_window_sizes=(3, 3)))
    load_weights(model, tmp_path / "x.pth")
    assert_same(model, source)


def test_the_pretrained_window_of_a_fine_tuned_file_is_read_off_its_coordinates(tmp_path: Path) -> None:
    """A file of windows 3 that were fine-tuned from 2 has coordinates relative to 2."""
    source = randomised(SWIN_V2)
    tensors = official(source, "swinv2")
    tensors |= {name: coordinates(3, 2) for name in tensors if name.endswith("coords_table")}
    torch.save({"model": tensors}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"pretrained_window_sizes=\[2, 2\] \(got None\)"):
        load_weights(build_model(SWIN_V2), tmp_path / "x.pth")
    load_weights(build_model(replace(SWIN_V2, pretrained_window_sizes=(2, 2))), tmp_path / "x.pth")
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith("coords_table")}
    torch.save({"model": without}, tmp_path / "y.pth")
    (notice,) = load_weights(build_model(SWIN_V2), tmp_path / "y.pth").notices
    assert "does not say with which windows" in notice
