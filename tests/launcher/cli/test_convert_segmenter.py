"""`swin-moe convert` of segmentation models: the heads come along, from one dialect to another."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.cli.program import main
from launcher.config.task_specs import register, unregister
from launcher.tasks.registry import task_spec
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.heads.upernet import Segmenter, build_segmenter
from swin_moe.heads.upernet_config import UPerNetConfig
from swin_moe.weights import load_weights
from tests.models import randomize
from tests.swin_moe.weights.dense_files import DENSE, released, state

CONFIG = replace(DENSE, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
HEAD = UPerNetConfig(channels=8, auxiliary_channels=4, norm_group_images=2)
RECIPE = """\
run_dir: run
task: upernet_of_a_test
model: {image_size: 40, num_classes: 5, embed_dim: 8, window_size: 3, window_padding: visible,
  depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]}
data: {train: train, val: val}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    """The recipe of a task whose model is UPerNet."""
    spec = replace(
        task_spec("classification"),
        name="upernet_of_a_test",
        options=None,
        model_on_meta=lambda config, _: construct_on_meta(
            lambda model, experts: Segmenter(model, HEAD, experts), config.model
        ),
        backbone=lambda model: model.encoder,
        pretrained=lambda model: model,
    )
    register(spec)
    path = tmp_path / "upernet.yaml"
    path.write_text(RECIPE)
    yield path
    unregister(spec.name)


def test_from_the_zoo_to_the_official_code(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = randomize(build_segmenter(CONFIG, HEAD), seed=1)
    zoo, official = tmp_path / "zoo.pth", tmp_path / "official.pth"
    torch.save({"meta": {}, "state_dict": released(source, "zoo")}, zoo)
    assert main(["convert", str(zoo), str(official), "--config", str(recipe), "--to", "official"]) == 0
    said = capsys.readouterr().out
    assert "OpenMMLab" in said
    assert "taken from the weights: backbone " in said
    model = build_segmenter(CONFIG, HEAD)
    load_weights(model, official)
    assert all(torch.equal(tensor, state(source)[name]) for name, tensor in state(model).items())
    weights = state(source)
    encoder = {name: weights[name] for name in weights if name.startswith("encoder.")}
    torch.save(encoder, tmp_path / "encoder.pth")
    line = ["convert", str(tmp_path / "encoder.pth"), str(tmp_path / "started.safetensors")]
    assert main([*line, "--config", str(recipe)]) == 0
    assert "stage norms 0 of 8, decode head 0 of " in capsys.readouterr().out
    load_weights(model, tmp_path / "started.safetensors")
    initial = state(build_segmenter(CONFIG, HEAD))
    for name, tensor in state(model).items():
        assert torch.equal(tensor, encoder.get(name, initial[name])), name
    assert main(["convert", str(zoo), str(tmp_path / "x"), "--config", str(recipe), "--to", "timm"]) == 2
    assert "--to timm has no models of segmentation" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
