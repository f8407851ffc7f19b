"""Runs on several weighted training sets and validation sets: on 1, 2 and 3 ranks, and after kills."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from parallel.checkpoint.commit import committed
from parallel.checkpoint.manifest import read_manifest
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import (
    CONFIG,
    EXACT,
    command,
    commands,
    evaluations,
    only,
    overrides,
    records,
    run_alone,
    steps,
)

STEPS = 12


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 images in `large`, 96 others in `small`, 64 to evaluate in `val` and 40 in `other`; 10 classes."""
    root = tmp_path_factory.mktemp("sets")
    for name, samples, seed in (("large", 256, 1), ("small", 96, 2), ("other", 40, 3)):
        pack(
            synthetic(samples, 64, num_classes=10, image_size=16, seed=seed),
            "train",
            root / name,
            samples_per_shard=32,
        )
    source = synthetic(16, 64, num_classes=10, image_size=16, seed=1)
    pack(source, "val", root / "val", samples_per_shard=32)
    return root


def line(sets: Path, run: Path, *more: str) -> list[str]:
    """The command: 12 steps of 24 images, of which `small` has a quarter."""
    train = f"{{large: {{path: {sets}/large, proportion: 3}}, small: {{path: {sets}/small, proportion: 1}}}}"
    options = (
        f"data.train={train}",
        f"data.val={{usual: {sets}/val, other: {sets}/other}}",
        f"train.duration={STEPS} steps",
        "train.global_batch_size=24",
        "train.micro_batch_size=4",
        "model.moe.routing_group_images=4",
        "train.eval_every=6 steps",
        "checkpoint.every=4 steps",
        "checkpoint.keep_last=9",
        "parallel.collective_timeout_s=60",
    )
    return ["train", str(CONFIG), "--resume", "auto", *overrides(sets, run, *options, *more)]


@pytest.fixture(scope="module")
def alone(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one rank."""
    run = tmp_path_factory.mktemp("alone") / "run"
    run_alone(*line(sets, run))
    return run


def assert_near(run: Path, wanted: Path) -> None:
    """The same losses and evaluations, up to the rounding of sums."""
    for found, expected in zip(steps(run), steps(wanted), strict=True):
        assert only(found, EXACT) == pytest.approx(only(expected, EXACT), rel=2e-4)
    for found, expected in zip(evaluations(run), evaluations(wanted), strict=True):
        for name in ("eval_loss", "eval_other_loss"):
            assert found[name] == pytest.approx(expected[name], rel=2e-4)
        assert (found["eval_images"], found["eval_other_images"]) == (64, 40)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_ranks_do_not_show(sets: Path, alone: Path, ranks: int, tmp_path: Path) -> None:
    assert all(one.code == 0 for one in run_on_ranks(command, ranks, *line(sets, tmp_path / "run")))
    assert_near(tmp_path / "run", alone)


def test_killed_and_resumed_the_figures_are_the_same(sets: Path, alone: Path, tmp_path: Path) -> None:
    """Bit for bit on one rank."""
    run = tmp_path / "run"
    with pytest.raises(RankError):
        run_on_ranks(_killed, 1, line(sets, run))
    run_alone(*line(sets, run))
    assert [only(one, EXACT) for one in steps(run)] == [only(one, EXACT) for one in steps(alone)]
    names = ("step", "eval_loss", "eval_top1", "eval_other_loss", "eval_other_top1", "eval_other_images")
    assert [only(one, names) for one in evaluations(run)] == [only(one, names) for one in evaluations(alone)]


def _killed(line: list[str]) -> Any:
    return command(*line, kill=("step", 7))


@pytest.mark.long
def test_killed_on_two_ranks_and_resumed_on_three(sets: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RankError):
        run_on_ranks(_killed, 2, line(sets, run))
    assert all(one.code == 0 for one in run_on_ranks(command, 3, *line(sets, run)))
    assert_near(run, alone)


def test_both_validation_sets_are_told(sets: Path, alone: Path) -> None:
    """The first has the plain names; each is what `eval` computes of it alone."""
    last = evaluations(alone)[-1]
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["validation_sets"] == ["usual", "other"]
    assert (summary["top1"], summary["other_top1"]) == (last["eval_top1"], last["eval_other_top1"])
    assert (summary["images"], summary["other_images"]) == (64, 40)
    assert not [name for name in summary if name.endswith(("_images_s", "other_expert_load"))]
    shown, named, unknown, several = run_on_ranks(
        commands,
        1,
        [
            ["eval", str(alone), "model.moe.eval_capacity_factor=0"],
            ["eval", str(alone), "--val", "other", "model.moe.eval_capacity_factor=0"],
            ["eval", str(alone), "--val", "othr"],
            ["eval", str(alone), "--knn", "1"],
        ],
    )[0]
    assert (shown.code, named.code, unknown.code) == (0, 0, 2), shown.err + named.err
    assert "did you mean other?" in unknown.err
    assert several.code == 2
    assert f"data.train has large, small: name one, such as data.train={sets}/large" in several.err
    (checkpoint,) = {path.parent for path in alone.glob("eval/*/evaluation.json")}
    usual, other = (
        json.loads((folder / "evaluation.json").read_text())["modes"][0]
        for folder in (checkpoint, checkpoint / "other")
    )
    assert (usual["images"], other["images"]) == (64, 40)
    assert usual["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert other["loss"] == pytest.approx(last["eval_other_loss"], rel=1e-5)


def test_the_first_lines_and_the_summary(sets: Path, tmp_path: Path) -> None:
    """`check` says the shares; the run says both sets after an evaluation, and in its summary."""
    arguments = line(sets, tmp_path / "run", "train.duration=1 steps", "train.ema_decay=0.9")
    checked = run_alone("check", arguments[1], *arguments[4:])
    assert "training data    2 sets, 352 images an epoch" in checked.out
    assert "  large          75.00% of the images, 1.031 times its 256 images of 10 classes" in checked.out
    assert "  small          25.00% of the images, 0.9167 times its 96 images of 10 classes" in checked.out
    assert "evaluation data  2 sets, compared by usual" in checked.out
    trained = run_alone(*arguments)
    assert "step 1: usual: top-1 " in trained.err
    assert "; other: top-1 " in trained.err
    assert "step 1: average: usual: top-1 " in trained.err
    assert "\n  other            top-1 " in trained.out
    (averaged,) = [one for one in records(tmp_path / "run") if one["kind"] == "eval_ema"]
    assert averaged["eval_ema_other_images"] == 40


def test_an_epoch_is_counted_in_images_of_all_sets(sets: Path, tmp_path: Path) -> None:
    """Without proportions an epoch has every image of every set once: 256 + 96 = 22 steps of 16."""
    run = tmp_path / "run"
    run_alone(
        *line(
            sets,
            run,
            f"data.train={{large: {{path: {sets}/large}}, small: {{path: {sets}/small}}}}",
            "train.duration=1 epochs",
            "train.global_batch_size=16",
            "checkpoint.every=1 epochs",
        )
    )
    last = steps(run)[-1]
    assert (last["step"], last["epoch"], last["images"]) == (22, 1.0, 352)
    state = read_manifest(committed(run / "checkpoints")[-1])["state"]["data"]
    assert [one["weight"] for one in state["sets"].values()] == [8, 3]


def test_sets_and_weights_are_fixed_when_a_run_goes_on(sets: Path, alone: Path) -> None:
    """Another weight, another set or one more is another order; validation sets may come and go."""
    train = f"large: {{path: {sets}/large, proportion: 3}}, small: {{path: {sets}/small, proportion: 1}}"
    longer = f"train.duration={STEPS + 1} steps"

    def refused(*more: str) -> str:
        (one,) = run_on_ranks(command, 1, *line(sets, alone, longer, *more), "--allow-change")
        assert one.code == 2, one.out
        return one.err

    changed = refused("data.train.small.proportion=3")
    assert "weights of large, small are 3 : 1 in the state, 1 : 1 here" in changed
    more = f"data.train={{{train}, more: {{path: {sets}/other, proportion: 1}}}}"
    assert "of the sets large, small, not of the sets large, small, more" in refused(more)
    assert "of the sets large, small, not of synthetic/train" in refused(f"data.train={sets}/large")
    other = refused(f"data.train.small.path={sets}/other")
    assert "manifest of another data set: small is synthetic/train, " in other
    (one,) = run_on_ranks(command, 1, *line(sets, alone, longer, f"data.val={{usual: {sets}/other}}"))
    assert "data.val.usual: manifest " in one.err
    assert "figures will not compare" in one.err
