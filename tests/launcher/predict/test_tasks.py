"""Every task answers in its own form, on images alone as in an evaluation; else one line refuses it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from launcher.cli.program import main
from launcher.config.errors import ConfigError
from launcher.config.task_sections import options_of
from launcher.config.task_specs import register, unregister
from launcher.deploy.artifact import open_predictor
from launcher.deploy.card import ArtifactError
from launcher.evaluation.recorded import recorded_config
from launcher.predict.answerer import Asked
from launcher.predict.answerers import open_answerer
from launcher.serve.served import has_class_map
from launcher.tasks.classification import SPEC as CLASSIFICATION
from launcher.tasks.image_data import eval_images, eval_labelled_images, normalize_images
from launcher.tasks.simmim import SPEC as SIMMIM
from launcher.tasks.spec import TaskSpec
from parallel.checkpoint.reader import CheckpointReader
from swin_moe.heads.simmim import SimMIM, SimMIMOutput, build_simmim
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.random.keyed import sample_keys
from tests.recorded import RUNS, SHARDS

RUN, EXPERTS, VAL = RUNS / "simmim_stage1", RUNS / "swin_moe_ep2_stage1", SHARDS / "val"


@contextmanager
def registered(spec: TaskSpec) -> Iterator[None]:
    """A spec in the place of the built-in one of its name."""
    register(spec)
    try:
        yield
    finally:
        unregister(spec.name)


def records(capsys: pytest.CaptureFixture[str], *words: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, words), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def error(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.fixture(scope="module")
def simmim() -> SimMIM:
    """The model of the recorded run, put together by hand."""
    config = recorded_config(RUN)
    model = build_simmim(config.model, options_of(config, SimMIMConfig))
    stored = CheckpointReader(next((RUN / "checkpoints").glob("step-*")))
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, full in stored.kind("master").items():
            named.pop(name).copy_(stored[full])
    assert not named
    return model.eval()


@pytest.fixture(scope="module")
def truth(simmim: SimMIM) -> SimMIMOutput:
    """What it says of the eight images of the split, in one batch with the masks of an evaluation."""
    config = recorded_config(RUN)
    with EvalStream(VAL, EvalSampling(batch_size=8), eval_images(config).transform) as stream:
        [batch] = stream
    images = normalize_images(batch["image"], config.data, torch.device("cpu"))
    with torch.no_grad():
        output: SimMIMOutput = simmim(images, sample_keys(0, torch.arange(8)))
    return output


@pytest.mark.parametrize("batch", [3, 8])
def test_reconstructions(truth: SimMIMOutput, batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every image; in the mean over its pixels the loss of an evaluation."""
    found = records(capsys, RUN, VAL, "--batch-size", batch)
    masked = truth.mask.sum((1, 2))
    assert [one["masked_pixels"] for one in found] == masked.tolist()
    wanted = (truth.error / masked).tolist()
    assert [one["loss"] for one in found] == pytest.approx(wanted, rel=1e-5)
    total = sum(one["loss"] * one["masked_pixels"] for one in found)
    assert total / sum(one["masked_pixels"] for one in found) == pytest.approx(truth.loss.item(), rel=1e-5)
    assert [one["file"] for one in found] == [f"{VAL}#{position}" for position in range(8)]


def test_an_image_in_a_file_has_one_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    for name in "ab":
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    first, second = records(capsys, RUN, tmp_path)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert main(["predict", str(RUN), str(tmp_path / "a.png")]) == 0
    said = f"a.png: reconstruction loss {first['loss']:.4f} on {first['masked_pixels']} masked pixels\n"
    assert capsys.readouterr().out == f"{tmp_path}/{said}"
    assert main(["predict", str(RUN), str(tmp_path / "a.png"), "--csv"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head == "file,label,error,loss,masked_pixels"
    assert row.split(",")[3:] == [str(first["loss"]), str(first["masked_pixels"])]


def test_pictures(
    simmim: SimMIM, truth: SimMIMOutput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The middle third of a picture is the image with its masked pixels grey, as the masks say."""
    out = tmp_path / "new" / "drawn"
    found = records(capsys, RUN, VAL, "--pictures", out)
    mean = torch.tensor(recorded_config(RUN).data.mean)
    grey = (mean * 255).round().to(torch.uint8).numpy()
    for position, one in enumerate(found):
        assert one["pictures"] == [f"{out}/{position:06d}.reconstruction.png"]
        picture = np.asarray(PIL.Image.open(one["pictures"][0]))
        assert picture.shape == (48, 16, 3)
        whole, visible, filled = picture[:16], picture[16:32], picture[32:]
        mask = truth.mask[position].numpy()
        assert (visible[mask] == grey).all()
        assert (visible[~mask] == whole[~mask]).all()
        assert (filled[~mask] == whole[~mask]).all()
        assert (filled[mask] != whole[mask]).any()
    assert "exists; choose another place" in error(capsys, RUN, VAL, "--pictures", out)


def test_features_are_those_of_the_encoder(
    simmim: SimMIM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, config = tmp_path / "features.safetensors", recorded_config(RUN)
    records(capsys, RUN, VAL, "--features", file)
    with EvalStream(VAL, EvalSampling(batch_size=8), eval_images(config).transform) as stream:
        [batch] = stream
    images = normalize_images(batch["image"], config.data, torch.device("cpu"))
    with torch.no_grad():
        wanted = simmim.encoder.forward_pooled(images, torch.zeros(8, dtype=torch.int64))[0]
    with safe_open(file, framework="pt") as saved:
        torch.testing.assert_close(saved.get_tensor("features"), wanted, rtol=1e-5, atol=1e-5)


def test_a_classifier_says_the_same_as_it_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """Without its program, by the task alone: the way of a third party's task that has classes."""
    wanted = records(capsys, EXPERTS, VAL, "--top", 10)
    with registered(replace(CLASSIFICATION, is_classifier=False)):
        found = records(capsys, EXPERTS, VAL, "--top", 10)
    for one, other in zip(found, wanted, strict=True):
        assert [score["index"] for score in one["top"]] == [score["index"] for score in other["top"]]
        probabilities = [[score["probability"] for score in each["top"]] for each in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-5)


def test_what_a_task_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded."""
    assert "--top: " in (said := error(capsys, RUN, VAL, "--top", "3"))
    assert "task=simmim, which has no classes; leave out --top" in said
    said = error(capsys, EXPERTS, VAL, "--threshold", "0.3")
    assert "task=classification, which has no objects with scores; leave out --threshold" in said
    said = error(capsys, EXPERTS, VAL, "--pictures", tmp_path / "out")
    assert "task=classification, which has no pictures; leave out --pictures" in said
    assert not (tmp_path / "out").exists()
    assert "leave out --config" in error(capsys, RUN, VAL, "--config", "demo_cpu")
    assert "holds no moving average" in error(capsys, RUN, VAL, "--ema")
    with registered(replace(SIMMIM, predicting=None)):
        assert "task=simmim, which has no predictions" in error(capsys, RUN, VAL)
    with registered(replace(CLASSIFICATION, predicting=None)):
        assert "task=classification, which has no predictions" in error(capsys, EXPERTS, VAL)
    assert SIMMIM.predicting is not None
    labelled = replace(SIMMIM.predicting, data=eval_labelled_images)
    with registered(replace(SIMMIM, predicting=labelled)):
        assert "`predicting.data` reads the members image, label" in error(capsys, RUN, VAL)


def test_a_task_is_deployed_and_served_if_it_says_so() -> None:
    with pytest.raises(ArtifactError, match="task=simmim: its model has no classifier, which `deploy` needs"):
        open_predictor(RUN)
    unlike = replace(CLASSIFICATION, is_classifier=False)
    with registered(unlike), pytest.raises(ArtifactError, match="task=classification: its model has no"):
        open_predictor(EXPERTS)
    assert open_predictor(EXPERTS).model.num_classes == 10
    with pytest.raises(
        ConfigError, match="task=simmim: `serve` is for classifiers and for tasks whose answer"
    ):
        has_class_map(RUN)
    assert not has_class_map(EXPERTS)
    assert SIMMIM.predicting is not None
    predicting = replace(SIMMIM.predicting, class_maps=lambda prediction: prediction.mask)
    with registered(replace(SIMMIM, predicting=predicting)):
        assert has_class_map(RUN)


def test_one_image_a_call_where_the_task_says_so() -> None:
    """Images of their own sizes cannot share a batch."""
    sizes: list[int] = []

    def answers(prediction: Any, batch: Any, options: Any) -> list[Any]:
        sizes.append(len(batch.positions))
        return ["nothing"] * len(batch.positions)

    assert SIMMIM.predicting is not None
    for one_by_one, wanted in ((False, [3]), (True, [1, 1, 1])):
        sizes.clear()
        predicting = replace(SIMMIM.predicting, answers=answers, one_by_one=one_by_one)
        with registered(replace(SIMMIM, predicting=predicting)):
            opened = open_answerer(RUN, asked=Asked())
            example = {"image": np.zeros((3, 16, 16), np.uint8)}
            assert [one.said for one in opened.answer([example] * 3, [0, 1, 2])] == ["nothing"] * 3
        assert sizes == wanted
