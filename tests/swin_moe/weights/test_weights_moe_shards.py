"""Sets of rank files of an official Swin-MoE run, into any expert-parallel size: as one file of all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parallel.experts.placement import ExpertParallel
from swin_moe import SwinTransformer, WeightsError, build_model, load_weights
from tests.swin_moe.weights.official_files import SWIN_MOE, assert_same, official, randomized, state

RANKS = 4
WITH_BIAS = replace(SWIN_MOE, mlp_fc2_bias=True)  # Tutel's tensors are the same, and their values not zero


def with_experts(num_experts: int, *, fc2_bias: bool) -> SwinTransformer:
    moe = replace(SWIN_MOE.moe, num_experts=num_experts)
    return randomized(replace(SWIN_MOE, moe=moe, mlp_fc2_bias=fc2_bias))


def whole(model: SwinTransformer) -> dict[str, Tensor]:
    tensors = official(model, "swin_moe")
    if model.config.mlp_fc2_bias:  # of the dense MLP, for which the table of official names has no line
        name = "layers.0.blocks.0.mlp.fc2.bias"
        tensors[name] = state(model)[name]
    num_experts = model.config.moe.num_experts
    for name in [name for name in tensors if name.endswith("batched_fc2_bias")]:
        if not model.config.mlp_fc2_bias:
            tensors[name] = torch.zeros(num_experts, tensors[name].shape[1])
    return tensors


def piece(name: str, tensor: Tensor, rank: int, num_experts: int) -> Tensor:
    """What one of four ranks holds of (E, ...): whole experts, or slices of one along the hidden units.

    The fc2 bias is over C, and Tutel pads it: 8 channels over 3 ranks are 3, 3 and 2 + 1.
    """
    if num_experts >= RANKS:
        per_rank = num_experts // RANKS
        return tensor[rank * per_rank : (rank + 1) * per_rank].clone()
    slices = RANKS // num_experts
    expert, part = divmod(rank, slices)
    own = tensor[expert : expert + 1]
    width = -(-own.shape[1] // slices)
    if width * slices > own.shape[1]:
        assert name.endswith("fc2_bias")
        own = torch.nn.functional.pad(own, (0, width * slices - own.shape[1]), value=9.0)
    return own[:, part * width : (part + 1) * width].clone()


def save_set(tensors: dict[str, Tensor], base: Path, num_experts: int, *, master: bool) -> None:
    for rank in range(RANKS):
        experts = {n: piece(n, t, rank, num_experts) for n, t in tensors.items() if ".experts." in n}
        dense = {n: t for n, t in tensors.items() if ".experts." not in n}
        torch.save({"model": experts if master else dense | experts}, f"{base}.rank{rank}")
        if master and rank == 0:
            torch.save({"model": dense}, f"{base}.master")


def on_rank(model: SwinTransformer, ep_rank: int, ep_size: int) -> SwinTransformer:
    """The same architecture as one of ep_size expert-parallel ranks holds it; built, never run."""
    num_experts = model.config.moe.num_experts
    per_rank = num_experts // ep_size
    local = range(ep_rank * per_rank, (ep_rank + 1) * per_rank)
    return SwinTransformer(
        model.config, ExpertParallel(num_experts=num_experts, local_experts=local, ep_size=ep_size)
    )


@pytest.mark.parametrize("master", [True, False], ids=["with master", "dense in each"])
@pytest.mark.parametrize("fc2_bias", [False, True], ids=["frozen fc2 bias", "fc2 bias"])
@pytest.mark.parametrize("num_experts", [8, 4, 2], ids=["two a rank", "one a rank", "half an expert a rank"])
def test_four_ranks_into_one_and_into_two(
    num_experts: int, fc2_bias: bool, master: bool, tmp_path: Path
) -> None:
    source = with_experts(num_experts, fc2_bias=fc2_bias)
    tensors = whole(source)
    torch.save({"model": tensors}, tmp_path / "all.pth.global")
    save_set(tensors, tmp_path / "moe.pth", num_experts, master=master)

    single, merged = build_model(source.config), build_model(source.config)
    load_weights(single, tmp_path / "all.pth.global")
    assert_same(single, source)
    report = load_weights(merged, tmp_path / "moe.pth")
    assert_same(merged, source)
    assert report.notices[0] == "merged 4 rank files" + (" and their master" if master else "")

    for ep_rank in range(2):
        model = on_rank(source, ep_rank, 2)
        load_weights(model, tmp_path / f"moe.pth.rank{ep_rank}")  # any file of the set stands for all of it
        half = slice(ep_rank * num_experts // 2, (ep_rank + 1) * num_experts // 2)
        for name, parameter in model.named_parameters():
            expected = state(source)[name]
            assert torch.equal(parameter, expected[half] if ".experts." in name else expected), name


def test_slices_of_a_bias_that_ranks_do_not_divide(tmp_path: Path) -> None:
    """3 ranks with a third of one expert each: C is 8 and 16, so a rank's part of the fc2 bias is 3 and 6."""
    moe = replace(SWIN_MOE.moe, num_experts=1)
    source = randomized(replace(WITH_BIAS, moe=moe))
    tensors = whole(source)
    for rank in range(3):
        part = dict(tensors)
        for name, tensor in tensors.items():
            if ".experts." in name:
                width = -(-tensor.shape[1] // 3)
                padded = torch.cat(
                    [tensor, torch.full_like(tensor[:, : 3 * width - tensor.shape[1]], 9.0)], 1
                )
                part[name] = padded[:, rank * width : (rank + 1) * width].clone()
        torch.save({"model": part}, tmp_path / f"x.pth.rank{rank}")
    model = build_model(source.config)
    load_weights(model, tmp_path / "x.pth")
    assert_same(model, source)


def test_old_biases_with_a_dim_of_one(tmp_path: Path) -> None:
    source, model = with_experts(4, fc2_bias=True), build_model(WITH_BIAS)
    tensors = {n: t[:, None] if ".experts." in n and "bias" in n else t for n, t in whole(source).items()}
    torch.save({"model": tensors}, tmp_path / "x.pth")
    load_weights(model, tmp_path / "x.pth")
    assert_same(model, source)


def test_dense_weights_that_drifted_apart_are_named(tmp_path: Path) -> None:
    source, model = with_experts(4, fc2_bias=False), build_model(SWIN_MOE)
    save_set(whole(source), tmp_path / "x.pth", 4, master=False)
    third = torch.load(tmp_path / "x.pth.rank2")
    third["model"]["norm.bias"] = third["model"]["norm.bias"] + 0.25
    torch.save(third, tmp_path / "x.pth.rank2")
    report = load_weights(model, tmp_path / "x.pth")
    assert any("dense weights of 1 files differ from those used, by up to 0.25" in n for n in report.notices)
    assert_same(model, source)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["x.pth.rank1"], r"x.pth.rank1 missing beside x.pth.rank3"),
        (["x.pth.rank3"], r"3 rank files .* do not make up the 4 experts"),
        (["x.pth.master"], r"x.pth.master is missing: the rank files hold experts only"),
    ],
)
def test_a_missing_file_of_the_set(removed: list[str], message: str, tmp_path: Path) -> None:
    source = with_experts(4, fc2_bias=False)
    save_set(whole(source), tmp_path / "x.pth", 4, master=True)
    for name in removed:
        (tmp_path / name).unlink()
    with pytest.raises(WeightsError, match=message):
        load_weights(build_model(SWIN_MOE), tmp_path / "x.pth")


def test_half_the_ranks_of_sliced_experts(tmp_path: Path) -> None:
    """Two of four ranks with halves of two experts look like two whole ones, but for their hidden units."""
    source = with_experts(2, fc2_bias=False)
    save_set(whole(source), tmp_path / "x.pth", 2, master=False)
    for rank in (2, 3):
        (tmp_path / f"x.pth.rank{rank}").unlink()
    with pytest.raises(WeightsError, match=r"batched_fc1_w\[0\] \[8, 12\] instead of \[8, 24\]"):
        load_weights(build_model(source.config), tmp_path / "x.pth")


def test_the_global_file_of_one_rank_of_several_is_not_the_whole_model(tmp_path: Path) -> None:
    source = with_experts(4, fc2_bias=False)
    save_set(whole(source), tmp_path / "x.pth", 4, master=False)
    (tmp_path / "x.pth.rank0").rename(tmp_path / "other.pth.global")
    message = r"it holds 1 experts in layers.0.blocks.1.mlp, of 4 that its router knows"
    with pytest.raises(WeightsError, match=message):
        load_weights(build_model(SWIN_MOE), tmp_path / "other.pth.global")


def test_the_cosine_router_loads(tmp_path: Path) -> None:
    tensors, expected = whole(with_experts(4, fc2_bias=False)), {}
    for gate in [name.removesuffix("wg.weight") for name in list(tensors) if name.endswith("wg.weight")]:
        channels = tensors.pop(gate + "wg.weight").shape[1]
        router = gate.replace("_moe_layer.gates.0", "router")
        shapes = {
            "cosine_projector.weight": (256, channels),
            "cosine_projector.bias": (256,),
            "sim_matrix": (256, 4),
            "temperature": (1,),
        }
        for leaf, shape in shapes.items():
            expected[router + leaf] = tensors[gate + leaf] = torch.randn(shape)
    assert len(expected) == 8
    torch.save({"model": tensors}, tmp_path / "x.pth")
    assert SWIN_MOE.moe is not None
    model = build_model(replace(SWIN_MOE, moe=replace(SWIN_MOE.moe, router="cosine")))
    load_weights(model, tmp_path / "x.pth")
    for name, tensor in expected.items():
        assert torch.equal(model.get_parameter(name), tensor)
