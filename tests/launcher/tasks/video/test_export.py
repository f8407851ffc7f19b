"""A trained run of video in every format that holds models of clips: each starts a run with its figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import launcher
from launcher.cli.program import main
from swin_moe.errors import ModelError
from tests.launcher.running import only, records, run_alone
from tests.launcher.tasks.layouts import layout, plain_sgd, stored
from tests.launcher.tasks.video.video_shards import CLASSES, line

DENSE = ("model.moe=null", "model.mlp_fc2_bias=true", "model.position_bias=table")
FORMS = {"native": DENSE, "official": DENSE, "mmaction": DENSE, "torchvision": DENSE, "safetensors": ()}
FIGURES = ("eval_top1", "eval_images", "eval_view_top1", "eval_loss")


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Two steps of a dense model and of one with experts, by the options."""
    place = tmp_path_factory.mktemp("exported")
    found = {}
    for name, options in {"dense": DENSE, "experts": ()}.items():
        run_alone(*line(shards, place / name, *plain_sgd(0.1, 2), *layout(1, 1, 4), *options))
        found[options] = place / name
    return found


def figures(run: Path) -> dict[str, float]:
    """Of the last evaluation of training."""
    return only([record for record in records(run) if "eval_top1" in record][-1], FIGURES)


@pytest.mark.parametrize("form", FORMS)
def test_another_run_starts_from_it(
    form: str, shards: Path, runs: dict[tuple[str, ...], Path], tmp_path: Path
) -> None:
    """Trained again at a rate of 1e-38, which leaves the weights: the same tensors and the same figures."""
    run, file = runs[FORMS[form]], tmp_path / form
    assert main(["export", str(run), str(file), "--to", form]) == 0
    start = (f"train.pretrained={file}", "train.pretrained_head=strict", "train.pretrained_require=all")
    steps = (*plain_sgd(1e-38, 1), *layout(1, 1, 4))
    run_alone(*line(shards, tmp_path / "again", *steps, *FORMS[form], *start))
    wanted, found = stored(run, 2, "master"), stored(tmp_path / "again", 1, "master")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-36, msg=name)
    assert figures(tmp_path / "again") == figures(run)


def test_our_formats_keep_the_names_of_the_classes(
    runs: dict[tuple[str, ...], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open

    assert main(["export", str(runs[()]), str(tmp_path / "m.safetensors"), "--to", "safetensors"]) == 0
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["inputs"])["classes"] == list(CLASSES)
    assert main(["export", str(runs[()]), str(tmp_path / "tv.pth"), "--to", "torchvision"]) == 2
    assert "could not run this model: swin_moe" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_a_loaded_model_takes_no_picture(runs: dict[tuple[str, ...], Path]) -> None:
    loaded = launcher.load(runs[DENSE])
    assert loaded.model(torch.zeros(1, 3, 4, 16, 16)).logits.shape == (1, 4)
    with pytest.raises(ModelError, match=r"a model of clips \(model.frames=4\) takes no image"):
        loaded.predict(np.zeros((24, 32, 3), np.uint8))


@pytest.mark.parametrize("words", [("deploy", "--to", "onnx"), ("serve",)], ids=["deploy", "serve"])
def test_programs_and_servers_are_of_images(
    runs: dict[tuple[str, ...], Path], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is loaded, with what answers to videos instead."""
    assert main([words[0], str(runs[DENSE]), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "task=video" in error
    assert "`swin-moe predict`" in error
