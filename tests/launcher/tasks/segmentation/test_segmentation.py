"""Runs of segmentation with experts: any layout, a kill, an evaluation on any ranks."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from launcher.cli.program import main, parse
from launcher.cli.serve import open_interface, serve_options
from launcher.serve.app import create_app
from launcher.serve.options import FOR_MAPS
from launcher.serve.served import has_class_map
from tests.distributed import run_on_ranks
from tests.launcher.refusals import assert_check_refuses, assert_other_classes_are_refused
from tests.launcher.running import Outcome, command, only, records, run_alone, steps
from tests.launcher.tasks.layouts import (
    assert_same_gradients,
    assert_same_run,
    assert_same_statistics,
    kill_and_resume,
    layout,
    on_every_layout,
    plain_sgd,
    results,
    train_on_ranks,
)
from tests.launcher.tasks.segmentation.pixel_shards import CLASSES, line, options, pack_pixels, sample

STEPS = 3
FIGURES = ("step", "loss", "aux_loss", "decode_loss", "auxiliary_loss", "lr", "grad_norm")
LR = 0.1
SGD = (*plain_sgd(LR, STEPS), "segmentation.head.norm_group_images=2")
MEANS = ("miou", "macc", "aacc", "pixels", "images", "class_iou", "class_pixels", "expert_load")


def evaluation(run: Path) -> dict[str, Any]:
    """The values of the first mode of the last evaluation."""
    modes: list[dict[str, Any]] = json.loads((results(run) / "evaluation.json").read_text())["modes"]
    return modes[0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images to train on and 7 to evaluate: no number of ranks divides these."""
    return pack_pixels(tmp_path_factory.mktemp("pixel_shards"), 48, 7)


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two micro-batches of 4, stage 1."""
    path = tmp_path_factory.mktemp("pixels") / "run"
    outcome = run_alone(*line(shards, path, *SGD, *layout(1, 1, 4)))
    assert "  evaluation       mIoU" in outcome.out
    return path


@pytest.fixture(scope="module")
def learned(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a little, so that it tells classes apart."""
    path = tmp_path_factory.mktemp("learned") / "run"
    more = ("train.duration=16 steps", "train.eval_every=16 steps", "train.global_batch_size=8")
    run_alone(*line(shards, path, *more, "optim.base_lr=0.64", "optim.min_lr=0.0", "checkpoint.every=null"))
    return path


def assert_same_training(run: Path, wanted: Path) -> None:
    """Losses within 1e-5, gradients of the second step within 1e-4, running statistics alike."""
    for record, other in zip(steps(run), steps(wanted), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5)
    assert_same_gradients(run, wanted, LR)
    assert_same_statistics(run, wanted, STEPS)


@on_every_layout
def test_every_layout_trains_alike(
    shards: Path, tmp_path: Path, alone: Path, ranks: int, ep_size: int, stage: int, micro: int
) -> None:
    train_on_ranks(ranks, line(shards, tmp_path / "run", *SGD, *layout(stage, ep_size, micro)))
    assert_same_training(tmp_path / "run", alone)


@pytest.mark.slow
def test_batch_norms_that_span_ranks(shards: Path, tmp_path: Path) -> None:
    """Groups of 4 images: of one rank, or of two ranks with 2 each."""
    group = "segmentation.head.norm_group_images=4"
    one, two = tmp_path / "one", tmp_path / "two"
    more = ("train.global_batch_size=4", group)
    run_alone(*line(shards, one, *SGD, *layout(1, 1, 4), *more))
    outcomes = run_on_ranks(command, 2, *line(shards, two, *SGD, *layout(1, 2, 2), *more))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert_same_training(two, one)


def test_losses_are_told_apart(alone: Path) -> None:
    for record in steps(alone):
        parts = record["decode_loss"] + 0.4 * record["auxiliary_loss"]
        assert record["loss"] == pytest.approx(parts, rel=1e-6)
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)
        assert record["aux_loss"] > 0


def test_killed_and_resumed_is_the_same_run(shards: Path, tmp_path: Path, alone: Path) -> None:
    """Bit for bit, with the running statistics of the batch norms."""
    killed = tmp_path / "killed"
    kill_and_resume(line(shards, killed, *SGD, *layout(1, 1, 4)))
    assert_same_run(killed, alone, FIGURES, STEPS, ("master", "buffer"))


WAYS = {
    "whole": (),
    "slide": ("segmentation.eval_mode=slide", "segmentation.eval_crop=16", "segmentation.eval_windows=3"),
    "views": (
        "segmentation.eval_ratios=[0.5, 1.0]",
        "segmentation.eval_flip=true",
        "segmentation.eval_band=9",
    ),
}


def evaluations(run: Path, ranks: int) -> list[dict[str, Any]]:
    """Each way in turn, in one start of ranks; the results of each."""
    found = run_on_ranks(evaluated, ranks, run)[0]
    assert len(found) == len(WAYS)
    return found


def evaluated(run: Path) -> list[dict[str, Any]]:
    found = []
    for way in WAYS.values():
        outcome: Outcome = command("eval", str(run), *way)
        assert outcome.code == 0, outcome.err
        found.append(evaluation(run))
    return found


def test_the_evaluation_is_of_no_layout(learned: Path) -> None:
    """Seven images of different sizes on 1 and 3 ranks, whose numbers of windows differ."""
    one, three = (evaluations(learned, ranks) for ranks in (1, 3))
    for found, wanted in zip(three, one, strict=True):
        assert only(found, MEANS) == only(wanted, MEANS)
        assert found["images"] == 7
    during = next(record for record in records(learned) if "eval_miou" in record)
    assert one[0]["miou"] == during["eval_miou"]
    assert sum(iou > 0 for iou in one[0]["class_iou"]) > 1
    assert len({json.dumps(found["class_iou"]) for found in one}) == 3  # each way says something else
    with (results(learned) / "classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "iou", "accuracy", "pixels"]
    assert {row[0] for row in rows[1:]} == set(CLASSES)
    assert (results(learned) / "pictures.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_evaluation_on_more_layouts(learned: Path, ranks: int) -> None:
    for found, wanted in zip(evaluations(learned, ranks), evaluations(learned, 1), strict=True):
        assert only(found, MEANS) == only(wanted, MEANS)


def test_single_images_get_answers(learned: Path, tmp_path: Path) -> None:
    """The classes with most pixels, a label image whose shares they are, and the same from a server."""
    pixels = sample(10_000)["image"]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    line = (
        "predict",
        str(learned),
        str(tmp_path / "one.png"),
        "--pictures",
        str(tmp_path / "pictures"),
        "--top",
        "4",
        "--json",
    )
    outcome = run_alone(*line)
    (answer,) = [one for one in map(json.loads, outcome.out.splitlines()) if "classes" in one]
    assert (answer["height"], answer["width"]) == pixels.shape[:2]
    (file,) = (tmp_path / "pictures").rglob("*labels*.png")
    counts = np.bincount(np.asarray(Image.open(file)).ravel(), minlength=4) / pixels[..., 0].size
    assert {one["index"]: one["share"] for one in answer["classes"]} == {
        i: pytest.approx(share) for i, share in enumerate(counts) if share
    }
    assert all(one["name"] == CLASSES[one["index"]] for one in answer["classes"])
    served = run_on_ranks(segmented, 1, learned, tmp_path / "one.png")[0]
    assert len(served["results"]) == served["examples"] + 1 == 8
    found = served["results"][0]
    names = tuple(answer["classes"][0])
    assert [{name: one[name] for name in names} for one in found["classes"]] == answer["classes"]
    assert base64.b64decode(found["map"]) == file.read_bytes()
    sides = sorted((one["height"], one["width"]) for one in served["results"][1:])
    assert sides == sorted(sample(10_000 + i)["mask"].shape for i in range(7))


def segmented(run: Path, image: Path) -> dict[str, Any]:
    """What a server says of an image and of its examples, all in one request to two passes at a time."""
    line = ["serve", str(run), "--workers", "2", "--max-batch", "8", "--threads", "1"]
    args = parse(line)
    app = create_app(open_interface(args, has_class_map(run)), serve_options(args, FOR_MAPS))
    with TestClient(app) as client:
        number = client.get("/examples").json()["examples"]
        bodies = [image.read_bytes(), *(client.get(f"/examples/{i}").content for i in range(number))]
        answer = client.post("/v1/segment", files=[("file", body) for body in bodies])
        assert answer.status_code == 200, answer.text
        described = client.get("/v1/model").json()
    assert (described["classes"], described["paths"]) == (list(CLASSES), ["/v1/segment"])
    return {**answer.json(), "examples": number}


def test_transformers_has_no_experts(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(learned), str(tmp_path / "hf"), "--to", "hf"]) == 2
    said = capsys.readouterr().err
    assert "--to hf is for UPerNet on swin; this backbone is swin_moe, and transformers'" in said
    assert "do not normalize the maps of the stages, or have no experts" in said
    assert "--to safetensors holds any model" in said
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((*CLASSES, "more"), "model.num_classes (4) must be the classes of data.val (5)"),
        ((*CLASSES[1:], CLASSES[0]), f"class 0 is {CLASSES[1]!r}, and that of the run "),
    ],
)
def test_data_of_other_classes_are_not_evaluated(
    shards: Path, alone: Path, tmp_path: Path, classes: tuple[str, ...], message: str
) -> None:
    """In another order they are others too: no figure would be right."""
    other = pack_pixels(tmp_path / "other", 2, 2, classes=classes)
    new_run = options(shards, tmp_path / "run", f"data.val={other}/val")
    assert_other_classes_are_refused(alone, other / "val", new_run, message)


def test_bad_data_is_refused_before_the_run(shards: Path, tmp_path: Path) -> None:
    wrong = options(shards, tmp_path / "run", "model.num_classes=5")
    assert_check_refuses(wrong, "model.num_classes (5) must be the classes of data.train (4)")


@pytest.mark.slow
def test_it_learns(shards: Path, tmp_path: Path) -> None:
    """A class a colour is an easy task."""
    more = ("train.duration=120 steps", "optim.base_lr=0.2", "train.global_batch_size=8", "optim.min_lr=0.0")
    run_alone(*line(shards, tmp_path / "run", *more))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["miou"] > 0.5
