"""Runs of feature distillation: any layout, a resume, the teacher's digest, an evaluation on any ranks."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.config.load import load_config
from parallel.zero.teacher import weights_digest
from swin_moe import build_backbone, load_weights
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import CONFIG, command, evaluations, only, overrides, run_alone, steps
from tests.launcher.tasks.distill.teachers import LR, STEPS, TEACHER, line, write_teacher
from tests.launcher.tasks.layouts import (
    Watcher,
    assert_same_gradients,
    layout,
    on_every_layout,
    results,
    stored,
)
from tests.models import small_moe

FIGURES = ("step", "loss", "aux_loss", "cosine", "target_spread", "lr", "grad_norm")
FIGURES_OF_EVAL = ("eval_loss", "eval_cosine", "eval_target_spread", "eval_knn", "eval_images")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With experts, which every rank holds."""
    moe = small_moe(blocks=((), (0,)), eval_capacity_factor=0.5)
    return write_teacher(
        tmp_path_factory.mktemp("teacher") / "teacher.safetensors", replace(TEACHER, moe=moe)
    )


@pytest.fixture(scope="module")
def alone(shards: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two micro-batches of 4."""
    path = tmp_path_factory.mktemp("distilled") / "run"
    outcome = run_alone(*line(shards, path, teacher, *layout(1, 1, 4)))
    assert "  evaluation       distillation loss" in outcome.out
    return path


@on_every_layout
def test_every_layout_trains_alike(
    shards: Path, tmp_path: Path, teacher: Path, alone: Path, ranks: int, ep_size: int, stage: int, micro: int
) -> None:
    run = tmp_path / "run"
    outcomes = run_on_ranks(command, ranks, *line(shards, run, teacher, *layout(stage, ep_size, micro)))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    for record, other in zip(steps(run), steps(alone), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5, abs=1e-7)
    assert_same_gradients(run, alone, LR)
    for record, other in zip(evaluations(run), evaluations(alone), strict=True):
        assert only(record, FIGURES_OF_EVAL) == pytest.approx(only(other, FIGURES_OF_EVAL), rel=1e-5)


def test_the_figures_are_told_apart(alone: Path) -> None:
    for record in steps(alone):
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)
        assert record["aux_loss"] > 0
        assert 0.2 < record["loss"] < 0.35  # near 0.247, as the projector starts near zero
        assert abs(record["cosine"]) < 1


def test_a_run_is_killed_and_goes_on_with_the_same_teacher(
    shards: Path, tmp_path: Path, teacher: Path, alone: Path
) -> None:
    """Bit for bit, from a copy elsewhere; other weights are refused."""
    killed, moved = tmp_path / "killed", tmp_path / "moved.safetensors"
    with pytest.raises(RankError, match="died"):
        run_on_ranks(partial(command, kill=("step", 2)), 1, *line(shards, killed, teacher, *layout(1, 1, 4)))
    other = write_teacher(tmp_path / "other.safetensors", seed=1)
    (refused,) = run_on_ranks(command, 1, *line(shards, killed, other, *layout(1, 1, 4)))
    assert refused.code == 2
    assert f"frozen teacher distill.teacher.weights ({other}) has weights of digest" in refused.err
    assert f"that of the checkpoint was distill.teacher.weights ({teacher})" in refused.err
    moved.write_bytes(teacher.read_bytes())
    run_alone(*line(shards, killed, moved, *layout(1, 1, 4)))
    assert [only(record, FIGURES) for record in steps(killed)] == [
        only(record, FIGURES) for record in steps(alone)
    ]
    found, wanted = stored(killed, STEPS, "master"), stored(alone, STEPS, "master")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_teacher_is_not_in_the_checkpoint(alone: Path) -> None:
    """Only its digest, the same after each step; it has neither weights nor moments there."""
    digests = set()
    for step in range(1, STEPS + 1):
        manifest = json.loads((alone / f"checkpoints/step-{step:08d}/manifest.json").read_text())
        digests.add(manifest["state"]["task"]["teacher"]["digest"])
        names = {name.partition("/")[2] for name in manifest["tensors"]}
        assert names
        assert all(name.startswith(("encoder.", "projector.")) for name in names)
    assert len(digests) == 1


def look_at_teacher(trainer: Any) -> list[Any]:
    """A digest of its tensors, whether it is in training mode, and whether anything trains it."""
    teacher = trainer.task.teacher
    own = list(teacher.module.parameters())
    trained = {id(one) for one in trainer.engine.module.parameters()}
    return [
        weights_digest(teacher.module, trainer.engine.mesh),
        teacher.module.training,
        any(one.requires_grad or one.grad is not None or id(one) in trained for one in own),
    ]


@pytest.mark.parametrize("task", ["distill", "distill_logits"])
def test_the_teacher_stays_as_it_is(shards: Path, tmp_path: Path, teacher: Path, task: str) -> None:
    """Bit for bit, on two ranks whose student is partitioned, over steps and an evaluation."""
    words = line(shards, tmp_path / "run", teacher, *layout(3, 2, 4), task=task)
    watcher = Watcher(tmp_path / "seen", look_at_teacher)
    outcomes = run_on_ranks(partial(command, hook=watcher), 2, *words)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    seen = watcher.seen()
    assert len(seen) == STEPS + 1
    manifest = json.loads((tmp_path / f"run/checkpoints/step-{STEPS:08d}/manifest.json").read_text())
    assert seen == [[manifest["state"]["task"]["teacher"]["digest"], False, False]] * len(seen)


@pytest.mark.parametrize(("ranks", "batch"), [(1, 7), (2, 12)])
def test_the_evaluation_is_of_no_layout(alone: Path, ranks: int, batch: int) -> None:
    outcomes = run_on_ranks(command, ranks, "eval", str(alone), f"train.eval_batch_size={batch}")
    assert outcomes[0].code == 0, outcomes[0].err
    found = json.loads((results(alone) / "evaluation.json").read_text())["modes"][0]
    wanted = evaluations(alone)[-1]
    for name in ("loss", "cosine", "target_spread", "knn", "images"):
        assert found[name] == pytest.approx(wanted[f"eval_{name}"], rel=1e-5), name


def test_the_student_is_fine_tuned(shards: Path, tmp_path: Path, alone: Path) -> None:
    """From the run and by way of a file: every tensor of the encoder, and no projector."""
    file = tmp_path / "encoder.safetensors"
    run_alone("convert", str(alone), str(file), "--to", "native", "--head", "replace")
    config = load_config(alone / "config.yaml").model
    models = [build_backbone(config) for _ in range(2)]
    load_weights(models[0], file)
    load_weights(models[1], alone)
    masters = stored(alone, STEPS, "master")
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    norm = masters["encoder.norm.weight"]
    assert torch.equal(models[0].norm.weight, norm)
    options = ["train.duration=1 steps", f"train.pretrained={file}", "train.pretrained_head=replace"]
    run_alone("train", str(CONFIG), *overrides(shards, tmp_path / "tuned", *options))


def test_an_earlier_stage_of_the_student(shards: Path, tmp_path: Path) -> None:
    """The stages behind it keep their initial values, weight decay or not, at every ZeRO stage."""
    path = write_teacher(tmp_path / "t.safetensors", replace(TEACHER, depths=(2,), num_heads=(2,)))
    more = ("distill.stage=0", "optim.weight_decay=0.5", "train.eval_every=null")
    runs = [tmp_path / "one", tmp_path / "two"]
    run_alone(*line(shards, runs[0], path, *more, *layout(1, 1, 4)))
    outcomes = run_on_ranks(command, 2, *line(shards, runs[1], path, *more, *layout(3, 2, 4)))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert [record["loss"] for record in steps(runs[1])] == pytest.approx(
        [record["loss"] for record in steps(runs[0])], rel=1e-5
    )
    for run in runs:
        first, last = stored(run, 1, "master"), stored(run, STEPS, "master")
        for name, tensor in last.items():
            is_left = name.startswith(("encoder.layers.1.", "encoder.norm."))
            assert torch.equal(tensor, first[name]) is is_left, name
