"""The weights that recipes of video start from: those of images are inflated, those of clips are kept."""

from pathlib import Path

import pytest
import torch

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.tasks.pretrained import plan_pretrained
from launcher.tasks.registry import start_on_meta
from swin_moe import save_weights
from tests.swin_moe.weights.official_files import SWIN, randomized
from tests.swin_moe.weights.video_files import CLIPS, on_file, released

RECIPE = "swin_tiny_patch244_window877_kinetics400_1k"
SMALL = (  # CLIPS
    *("model.image_size=24", "model.embed_dim=8", "model.depths=[2,1]", "model.num_heads=[2,4]"),
    *("model.window_size=3", "model.mlp_ratio=3.0", "model.frames=8", "model.window_frames=2"),
)


def recipe(path: Path, *more: str) -> RunConfig:
    return load_config(RECIPE, [*SMALL, f"train.pretrained={path}", *more])


def test_weights_of_images_get_a_new_classifier(tmp_path: Path) -> None:
    """Five classes for 400, by the recipe alone."""
    config = recipe(save_weights(randomized(SWIN), tmp_path / "swin.pth", "official"))
    report = plan_pretrained(config.train, start_on_meta(config)).report
    assert report.changes == [
        "classifier: the model's own of 400 classes stays, that of 5 classes is not used",
        "inflated from images: the patch embedding over 2 frames, 3 position bias tables over 3 offsets in "
        "time",
    ]
    assert report.initial == {"classifier": 2}


def test_a_class_map_and_all_that_is_required(tmp_path: Path) -> None:
    path = save_weights(randomized(SWIN), tmp_path / "swin.pth", "official")
    config = recipe(path, "train.pretrained_require=all")
    with pytest.raises(ConfigError, match=r"does not have the whole model.*classifier: 2 tensors"):
        plan_pretrained(config.train, start_on_meta(config))
    (tmp_path / "map.txt").write_text("4\n0\n")
    more = (f"train.pretrained_head={tmp_path / 'map.txt'}", "train.pretrained_require=all")
    config = recipe(path, *more, "model.num_classes=2")
    plan = plan_pretrained(config.train, start_on_meta(config))
    assert plan.report.initial == {}
    assert plan.tensors["head.weight"].shape == (2, 16)


def test_weights_of_clips_with_their_classifier(tmp_path: Path) -> None:
    source = randomized(CLIPS)
    torch.save(on_file(released(source, "torchvision"), "torchvision"), tmp_path / "swin3d.pth")
    config = recipe(tmp_path / "swin3d.pth", "train.pretrained_head=strict", "model.num_classes=5")
    plan = plan_pretrained(config.train, start_on_meta(config))
    assert (plan.report.changes, plan.report.initial) == ([], {})
    assert torch.equal(plan.tensors["head.weight"], source.head.weight)
