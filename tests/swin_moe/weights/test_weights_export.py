"""Every export format and back: bit by bit the same, and the names that others expect."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from parallel.experts.placement import ExpertParallel
from swin_moe import ModelConfig, SwinTransformer, WeightsError, build_model, load_weights, save_weights
from swin_moe.weights.native import config_of
from tests.swin_moe.weights.official_files import (
    CONFIGS,
    SWIN,
    SWIN_MLP,
    SWIN_MOE,
    SWIN_V2,
    assert_same,
    official,
    randomized,
    state,
)

ANY = replace(SWIN_V2, extra_norm_period=2, moe=SWIN_MOE.moe)  # of no published family
DENSE_MOE = replace(SWIN_MOE, moe=None)  # the dense baseline of Swin-MoE


@pytest.mark.parametrize(
    ("config", "form"),
    [
        *((c, f) for c in (SWIN, SWIN_V2, SWIN_MLP, SWIN_MOE, ANY) for f in ("native", "safetensors")),
        *((c, "official") for c in (SWIN, SWIN_V2, SWIN_MLP, SWIN_MOE, DENSE_MOE)),
        (replace(SWIN_MOE, mlp_fc2_bias=True), "official"),
        *((replace(c, image_size=8, window_padding="visible"), "native") for c in (SWIN, SWIN_V2)),
        (SWIN, "timm"),
        (SWIN_V2, "timm"),
        (replace(SWIN, image_size=12), "hf"),  # maps of 3 and 2 would need padding
        (replace(SWIN_V2, image_size=12, window_size=1), "hf"),
    ],
)
@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
def test_there_and_back(config: ModelConfig, form: str, name: str, tmp_path: Path) -> None:
    if form == "hf":
        config = replace(config, image_size=32, window_size=4)
        config = replace(config, depths=(2, 2))
    source, model = randomized(config), build_model(config)
    written = save_weights(source, tmp_path / name, form)
    report = load_weights(model, written)
    assert_same(model, source)
    expected = {"native": "swin-moe", "safetensors": "swin-moe", "hf": "Hugging Face"}.get(form, form)
    assert report.format.startswith(expected)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing half-written is left
    if form in ("native", "safetensors"):
        assert config_of(written) == config
        assert report.notices == []
    else:
        assert config_of(written) is None


@pytest.mark.parametrize("kind", CONFIGS)
def test_official_files_have_the_official_names_and_values(kind: str, tmp_path: Path) -> None:
    """By the table written by hand; the masks, which depend on the image alone, are left out."""
    source = randomized(CONFIGS[kind])
    save_weights(source, tmp_path / "x.pth", "official")
    written = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    expected = official(source, kind)
    left_out = {n for n in expected if n.endswith(("attn_mask", "_num_global_experts"))}
    assert written.keys() == expected.keys() - left_out
    for name, tensor in written.items():
        if name.endswith("coords_table"):
            torch.testing.assert_close(tensor, expected[name])
        elif not name.endswith("_index"):
            assert torch.equal(tensor, expected[name]), name


def test_timm_files_merge_at_the_start_of_a_stage(tmp_path: Path) -> None:
    source = randomized(SWIN)
    save_weights(source, tmp_path / "x.pth", "timm")
    written = torch.load(tmp_path / "x.pth", weights_only=True)
    assert torch.equal(
        written["layers.1.downsample.reduction.weight"], source.layers[1].merge.reduction.weight
    )
    assert torch.equal(written["head.fc.bias"], source.head.bias)
    assert len(written) == len(state(source))


def test_native_files_have_a_tensor_an_expert_and_the_config(tmp_path: Path) -> None:
    source = randomized(SWIN_MOE)
    save_weights(source, tmp_path / "x.safetensors", "native")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        tensor = file.get_tensor("layers.1.blocks.0.mlp.experts.3.fc1_weight")
        config = json.loads(file.metadata()["config"])
    assert torch.equal(tensor, source.layers[1].blocks[0].mlp.experts.fc1_weight[3])
    assert config["moe"]["num_experts"] == 4


@pytest.mark.parametrize(
    ("config", "form", "message"),
    [
        (SWIN_MLP, "timm", "--to timm is for swin, swinv2; this model is swin_mlp"),
        (SWIN_MOE, "timm", "this model is swin_moe"),
        (
            ANY,
            "official",
            "one with cosine attention, log_cpb bias, post norm, extra_norm_period=2, 4 experts",
        ),
        (replace(SWIN, mlp_fc2_bias=False), "official", "mlp_fc2_bias=false"),
        (
            replace(SWIN, window_padding="visible", depths=(2, 2)),
            "official",
            "stage 1 has a map of 3 x 3 and windows of 3, for which it would use windows of 3 and no shifts",
        ),
        (
            SWIN,
            "onnx",
            "no format 'onnx'; known: native, safetensors, official, mmseg, mmdet, mmaction, torch",
        ),
    ],
)
def test_a_format_that_cannot_hold_the_model(
    config: ModelConfig, form: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_weights(build_model(config), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_the_library_is_imported_without_deepspeed() -> None:
    """It would look for its device, and say so on stderr."""
    code = "import sys, swin_moe, launcher.cli.convert; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(WeightsError, match="x exists; choose another place"):
        save_weights(build_model(SWIN), tmp_path / "x", "native")
    assert (tmp_path / "x").read_text() == "mine"


def test_a_model_with_a_part_of_the_experts_is_not_exported(tmp_path: Path) -> None:
    placement = ExpertParallel(num_experts=4, local_experts=range(2, 4), ep_size=2)
    model = SwinTransformer(SWIN_MOE, placement)
    with pytest.raises(WeightsError, match=r"the model holds experts 2..3 of 4"):
        save_weights(model, tmp_path / "x.safetensors", "native")
