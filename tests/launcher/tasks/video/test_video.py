"""Runs of action recognition with experts: any layout, a kill, an evaluation on any ranks, in any views."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_on_ranks
from tests.launcher.running import Outcome, command, only, records, run_alone, steps
from tests.launcher.tasks.layouts import (
    assert_same_gradients,
    assert_same_run,
    kill_and_resume,
    layout,
    on_every_layout,
    plain_sgd,
    results,
    train_on_ranks,
)
from tests.launcher.tasks.video.video_shards import CLASSES, line, video

STEPS = 3
FIGURES = ("step", "loss", "aux_loss", "total_loss", "lr", "grad_norm")
LR = 0.1
SGD = plain_sgd(LR, STEPS)
EXACT = ("top1", "top5", "images", "view_top1", "mean_class_top1", "expert_load", "dropped_fraction")


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two micro-batches of 4, stage 1."""
    path = tmp_path_factory.mktemp("videos") / "run"
    outcome = run_alone(*line(shards, path, *SGD, *layout(1, 1, 4)))
    assert "on 7 videos (1x1 views)" in outcome.out
    return path


def assert_same_training(run: Path, wanted: Path) -> None:
    """Losses within 1e-5, gradients of the second step within 1e-4."""
    for record, other in zip(steps(run), steps(wanted), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5)
    assert_same_gradients(run, wanted, LR)


@on_every_layout
def test_every_layout_trains_alike(
    shards: Path, tmp_path: Path, alone: Path, ranks: int, ep_size: int, stage: int, micro: int
) -> None:
    train_on_ranks(ranks, line(shards, tmp_path / "run", *SGD, *layout(stage, ep_size, micro)))
    assert_same_training(tmp_path / "run", alone)


def test_the_losses_of_experts_reach_the_loss(alone: Path) -> None:
    for record in steps(alone):
        assert record["aux_loss"] > 0
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)


def test_killed_and_resumed_is_the_same_run(shards: Path, tmp_path: Path, alone: Path) -> None:
    killed = tmp_path / "killed"
    kill_and_resume(line(shards, killed, *SGD, *layout(1, 1, 4)))
    assert_same_run(killed, alone, FIGURES, STEPS)


WAYS: dict[str, tuple[str, ...]] = {
    "centre": (),
    "views": ("video.clips=2", "video.crops=3"),
    "views at once": ("video.clips=2", "video.crops=3", "video.view_batch=4"),
    "capacity": ("video.clips=2", "model.moe.eval_capacity_factor=0.5"),
    "capacity, one view at once": (
        "video.clips=2",
        "video.view_batch=1",
        "model.moe.eval_capacity_factor=0.5",
    ),
}


def evaluated(run: Path) -> dict[str, dict[str, Any]]:
    """The values of each way."""
    found = {}
    for name, way in WAYS.items():
        outcome: Outcome = command("eval", str(run), *way)
        assert outcome.code == 0, outcome.err
        modes = json.loads((results(run) / "evaluation.json").read_text())["modes"]
        found[name] = modes["capacity" in name]  # the mode without a capacity comes first
    return found


def test_the_evaluation_is_of_no_layout(alone: Path) -> None:
    """Seven videos on 1 and 3 ranks, in one or six views, some at once."""
    one, three = (run_on_ranks(evaluated, ranks, alone)[0] for ranks in (1, 3))
    for name in WAYS:
        assert only(three[name], EXACT) == only(one[name], EXACT), name
        assert three[name]["loss"] == pytest.approx(one[name]["loss"], rel=1e-6)
        assert one[name]["images"] == 7
    during = next(record for record in records(alone) if "eval_top1" in record)
    assert one["centre"]["top1"] == during["eval_top1"]
    assert one["centre"]["loss"] == pytest.approx(during["eval_loss"], rel=1e-6)
    assert (one["centre"]["views"], one["views"]["views"]) == (1, 6)
    assert one["views"]["loss"] != pytest.approx(one["centre"]["loss"], rel=1e-4)
    for some, every in (("views at once", "views"), ("capacity, one view at once", "capacity")):
        assert only(one[some], EXACT) == only(one[every], EXACT)
        assert one[some]["loss"] == pytest.approx(one[every]["loss"], rel=1e-5)
    assert one["capacity"]["dropped_fraction"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_evaluation_on_more_layouts(alone: Path, ranks: int) -> None:
    found, wanted = (run_on_ranks(evaluated, count, alone)[0] for count in (ranks, 1))
    for name in WAYS:
        assert only(found[name], EXACT) == only(wanted[name], EXACT), name


def test_single_videos_get_answers(alone: Path, shards: Path, tmp_path: Path) -> None:
    """A file of a folder, and the shards: their best classes are those that the evaluation counted."""
    (tmp_path / "one.mp4").write_bytes(video(10_000))
    (tmp_path / "bad.mp4").write_bytes(video(10_001)[:300])
    (tmp_path / "page.txt").write_text("no video")
    outcome = run_on_ranks(command, 1, "predict", str(alone), str(tmp_path), "--json", "--top", "4")[0]
    bad, one = [json.loads(text) for text in outcome.out.splitlines()]
    assert bad["file"].endswith("bad.mp4")
    assert "error" in bad
    assert [best["name"] for best in one["top"]] == [CLASSES[best["index"]] for best in one["top"]]
    assert sum(best["probability"] for best in one["top"]) == pytest.approx(1)
    outcome = run_on_ranks(command, 1, "predict", str(alone), str(shards / "val"), "--json", "--top", "4")[0]
    answers = [json.loads(text) for text in outcome.out.splitlines()]
    assert one["top"] in [answer["top"] for answer in answers]  # packing has shuffled them
    hits = [answer["top"][0]["index"] == answer["label"] for answer in answers]
    during = next(record for record in records(alone) if "eval_top1" in record)
    assert sum(hits) / 7 == during["eval_top1"]
