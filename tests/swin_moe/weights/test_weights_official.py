"""Official, SimMIM and timm files: names and layouts from a table written by hand, values random."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swin_moe import WeightsError, build_model, load_weights
from tests.swin_moe.weights.official_files import (
    CONFIGS,
    SWIN,
    SWIN_V2,
    assert_same,
    coordinates,
    cubic,
    official,
    randomized,
)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_official_file_of_every_family(kind: str, tmp_path: Path) -> None:
    source, model = randomized(CONFIGS[kind]), build_model(CONFIGS[kind])
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
    source, model = randomized(SWIN), build_model(SWIN)
    torch.save({f"module.{n}": t for n, t in official(source, "swin").items()}, tmp_path / "x.bin")
    load_weights(model, tmp_path / "x.bin")
    assert_same(model, source)


def test_an_old_file_that_is_no_archive(tmp_path: Path) -> None:
    source, model = randomized(SWIN), build_model(SWIN)
    tensors = official(source, "swin")
    torch.save({"model": tensors}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    load_weights(model, tmp_path / "x.pth")
    assert_same(model, source)


@pytest.mark.parametrize("head", ["head.", "head.fc."])
@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_timm_with_the_merging_at_the_start_of_a_stage(kind: str, head: str, tmp_path: Path) -> None:
    source, model = randomized(CONFIGS[kind]), build_model(CONFIGS[kind])
    tensors = {
        name.replace("layers.0.downsample", "layers.1.downsample").replace("head.", head): tensor
        for name, tensor in official(source, kind).items()
    }
    torch.save(tensors, tmp_path / "timm.pth")
    assert load_weights(model, tmp_path / "timm.pth").format == "timm"
    assert_same(model, source)


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_a_simmim_file_without_classifier(kind: str, tmp_path: Path) -> None:
    source, model = randomized(CONFIGS[kind]), build_model(CONFIGS[kind])
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


def test_a_larger_window_resizes_the_bias_table(tmp_path: Path) -> None:
    """Windows of 3 to windows of 7 and 4: each head's 5 x 5 table becomes 13 x 13 and 7 x 7."""
    source = randomized(SWIN)
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
    source = randomized(SWIN_V2)
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
    source = randomized(SWIN_V2)
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
