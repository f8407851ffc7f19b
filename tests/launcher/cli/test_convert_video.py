"""`swin-moe convert` of models of clips: from one dialect to the next, and from images."""

from pathlib import Path

import pytest
import torch

from launcher.cli.program import main
from swin_moe import build_model, save_weights
from swin_moe.weights.native import config_of
from tests.swin_moe.weights.official_files import SWIN, randomized
from tests.swin_moe.weights.video_files import CLIPS, on_file, released

YAML = """
model:
  image_size: 24
  num_classes: {classes}
  embed_dim: 8
  depths: [2, 1]
  num_heads: [2, 4]
  window_size: 3
  mlp_ratio: 3.0
  frames: 8
  window_frames: 2
  window_padding: fitted
"""


def recipe(tmp_path: Path, classes: int = 5) -> str:
    path = tmp_path / "clips.yaml"
    path.write_text(YAML.format(classes=classes))
    return str(path)


def test_from_one_dialect_to_the_next_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchvision -> ours, which knows its model -> mmaction2 -> official -> torchvision: all the same."""
    first = released(randomized(CLIPS), "torchvision")
    torch.save(on_file(first, "torchvision"), source := tmp_path / "in.pth")
    config = recipe(tmp_path)
    for form in ("native", "mmaction", "official", "torchvision"):
        name, options = form, [] if source.name == "native" else ["--config", config]
        assert main(["convert", str(source), str(tmp_path / name), "--to", form, *options]) == 0
        assert f"wrote {tmp_path / name} ({form})" in capsys.readouterr().out
        source = tmp_path / name
    assert config_of(tmp_path / "native") == CLIPS
    last = torch.load(source, weights_only=True)
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_images_are_inflated_for_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_weights(build_model(SWIN), tmp_path / "in.pth", "official")
    line = ["convert", str(source), str(tmp_path / "out"), "--config", recipe(tmp_path, classes=4)]
    assert main(line) == 2
    assert "the weights have 5 classes, model.num_classes is 4" in capsys.readouterr().err
    assert main([*line, "--head", "replace"]) == 0
    out = capsys.readouterr().out
    assert "inflated from images: the patch embedding over 2 frames, 3 position bias tables over 3" in out
    assert "the model's own of 4 classes stays" in out


def test_formats_without_models_of_clips_are_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the weights are read."""
    for form in ("hf", "timm", "mmseg", "mmdet"):
        line = ["convert", "nowhere", str(tmp_path / "out"), "--to", form, "--config", recipe(tmp_path)]
        assert main(line) == 2
        error = capsys.readouterr().err
        assert f"--to {form} " in error
        assert error.count("\n") == 1
