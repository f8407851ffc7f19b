"""Runs of detection with experts: any layout, a kill, an evaluation on any ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.distributed import run_on_ranks
from tests.launcher.refusals import assert_check_refuses, assert_other_classes_are_refused
from tests.launcher.running import command, only, records, run_alone, steps
from tests.launcher.tasks.detection.object_shards import (
    CATEGORY_IDS,
    CLASSES,
    line,
    options,
    pack_objects,
    sample,
)
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

STEPS = 3
LR = 0.02
TERMS = ("rpn_objectness", "rpn_box", "box_class", "box_regression", "mask")
FIGURES = ("step", "loss", "aux_loss", *TERMS, "lr", "grad_norm")
SGD = plain_sgd(LR, STEPS)
FIGURES_OF_COCO = ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "images", "objects", "detections")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images to train on and 7 to evaluate: no number of ranks divides these."""
    return pack_objects(tmp_path_factory.mktemp("object_shards"), 40, 7)


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two micro-batches of 4, stage 1."""
    path = tmp_path_factory.mktemp("objects") / "run"
    outcome = run_alone(*line(shards, path, *SGD, *layout(1, 1, 4)))
    assert "  evaluation       box AP" in outcome.out
    return path


def assert_same_training(run: Path, wanted: Path) -> None:
    """Losses within 1e-5, gradients and their norm within 1e-4."""
    for record, other in zip(steps(run), steps(wanted), strict=True):
        assert only(record, FIGURES[:-1]) == pytest.approx(only(other, FIGURES[:-1]), rel=1e-5, abs=1e-7)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert_same_gradients(run, wanted, LR)


@on_every_layout
def test_every_layout_trains_alike(
    shards: Path, tmp_path: Path, alone: Path, ranks: int, ep_size: int, stage: int, micro: int
) -> None:
    train_on_ranks(ranks, line(shards, tmp_path / "run", *SGD, *layout(stage, ep_size, micro)))
    assert_same_training(tmp_path / "run", alone)


CASCADE = (  # its gradients are five times as large
    "detection.head.kind=cascade_mask_rcnn",
    "detection.head.norm_group_images=2",
    f"optim.base_lr={64 * LR / 5}",
    f"optim.min_lr={64 * LR / 5}",
)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "micro"), [(2, 2, 2), (2, 3, 4), (4, 1, 2)])
def test_a_cascade_trains_alike(shards: Path, tmp_path: Path, ranks: int, stage: int, micro: int) -> None:
    """With batch norms over the regions of two images, and their running statistics."""
    one, several = tmp_path / "one", tmp_path / "several"
    run_alone(*line(shards, one, *SGD, *layout(1, 1, 4), *CASCADE))
    outcomes = run_on_ranks(command, ranks, *line(shards, several, *SGD, *layout(stage, 1, micro), *CASCADE))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    for record, other in zip(steps(several), steps(one), strict=True):
        names = ("step", "loss", "box_class_2", "mask_2", "grad_norm")
        assert only(record, names) == pytest.approx(only(other, names), rel=1e-5, abs=1e-7)
    assert_same_statistics(several, one, STEPS)


def test_losses_are_told_apart(alone: Path) -> None:
    for record in steps(alone):
        assert record["loss"] == pytest.approx(sum(record[name] for name in TERMS), rel=1e-6)
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)
        assert record["aux_loss"] > 0


def test_killed_and_resumed_is_the_same_run(shards: Path, tmp_path: Path, alone: Path) -> None:
    """Bit for bit."""
    killed = tmp_path / "killed"
    kill_and_resume(line(shards, killed, *SGD, *layout(1, 1, 4)))
    assert_same_run(killed, alone, FIGURES, STEPS)


@pytest.mark.slow
def test_a_rank_without_objects_trains_on(tmp_path: Path) -> None:
    """No image of the data has an object: all losses are those of the background."""
    empty = pack_objects(tmp_path / "shards", 8, 2, objects=False)
    outcomes = run_on_ranks(command, 2, *line(empty, tmp_path / "run", *SGD, *layout(3, 2, 2)))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for record in steps(tmp_path / "run"):
        assert record["rpn_box"] == record["box_regression"] == record["mask"] == 0.0
        assert record["box_class"] > 0


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, again and again, and an evaluation of the same ones."""
    shards = pack_objects(tmp_path_factory.mktemp("eight"), 8, 2)
    path = tmp_path_factory.mktemp("learned") / "run"
    more = (
        "train.duration=500 steps",
        "train.eval_every=500 steps",
        f"data.val={shards}/train",
        "data.flip_probability=0.0",
        "detection.short_sides=[48]",
        "optim.base_lr=0.25",
        "optim.min_lr=0.0",
        "optim.weight_decay=0.0",
        "optim.warmup=20 steps",
        "model.drop_path_rate=0.0",
        "model.moe.expert_dropout=0.0",
        "checkpoint.every=null",
    )
    run_alone(*line(shards, path, *more))
    return path


@pytest.mark.slow
def test_eight_images_can_be_learned(learned: Path) -> None:
    summary = json.loads((learned / "summary.json").read_text())
    assert summary["box_ap"] > 0.9
    assert summary["mask_ap"] > 0.8


def evaluated(run: Path) -> dict[str, Any]:
    outcome = command("eval", str(run))
    assert outcome.code == 0, outcome.err
    modes: list[dict[str, Any]] = json.loads((results(run) / "evaluation.json").read_text())["modes"]
    return modes[0] | {"files": (results(run) / "detections.json").read_text()}


@pytest.mark.slow
def test_the_evaluation_is_of_no_layout(learned: Path) -> None:
    """The same figures and the same file of detections on 1 to 4 ranks, and as the run had them."""
    one = run_on_ranks(evaluated, 1, learned)[0]
    for ranks in (2, 3, 4):
        found = run_on_ranks(evaluated, ranks, learned)[0]
        assert only(found, (*FIGURES_OF_COCO, "files")) == only(one, (*FIGURES_OF_COCO, "files"))
    during = next(record for record in records(learned) if "eval_box_ap" in record)
    assert one["box_ap"] == during["eval_box_ap"]
    listed = json.loads(one["files"])
    assert len(listed) == one["detections"]
    assert {found["category_id"] for found in listed} <= set(CATEGORY_IDS)
    assert listed[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}


@pytest.mark.slow
def test_single_images_get_answers(learned: Path, tmp_path: Path) -> None:
    """The objects of an image that was learned: their classes by name, and boxes that cover them."""
    number = 0
    Image.fromarray(sample(number)["image"]).save(tmp_path / "one.png")
    wanted = sample(number)["annotations"]["objects"]
    outcome = run_alone("predict", str(learned), str(tmp_path / "one.png"), "--json")
    (answer,) = [one for one in map(json.loads, outcome.out.splitlines()) if "objects" in one]
    assert {one["name"] for one in answer["objects"]} == {CLASSES[one["label"]] for one in wanted}


def test_an_image_without_objects_and_an_untrained_model(shards: Path, alone: Path) -> None:
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["images"] == 7
    assert 0 <= summary["box_ap"] < 0.5


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((*CLASSES, "more"), "model.num_classes (3) must be the classes of data.val (4)"),
        ((*CLASSES[1:], CLASSES[0]), f"class 0 is {CLASSES[1]!r}, and that of the run "),
    ],
)
def test_data_of_other_classes_are_not_evaluated(
    shards: Path, alone: Path, tmp_path: Path, classes: tuple[str, ...], message: str
) -> None:
    """In another order they are others too: no figure would be right."""
    other = pack_objects(tmp_path / "other", 2, 2, classes=classes)
    new_run = options(shards, tmp_path / "run", f"data.val={other}/val")
    assert_other_classes_are_refused(alone, other / "val", new_run, message)


def test_bad_data_is_refused_before_the_run(shards: Path, tmp_path: Path) -> None:
    wrong = options(shards, tmp_path / "run", "model.num_classes=5")
    assert_check_refuses(wrong, "model.num_classes (5) must be the classes of data.train (3)")
