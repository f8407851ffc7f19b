"""Feature distillation into an LR-Net: norms that span ranks, a resume, the planner, eval, weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.config.load import load_config
from launcher.plan.base.hardware import load_hardware
from launcher.plan.memory.estimate import predict_memory
from launcher.plan.time.compute_cost import compute_cost
from launcher.plan.time.workload import flops_by_part
from launcher.validation.rules import problems
from swin_moe import build_backbone, load_weights
from swin_moe.backbone.flops import cost
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, command, evaluations, only, overrides, run_alone, steps
from tests.launcher.tasks.distill.teachers import TEACHER, line, write_teacher
from tests.launcher.tasks.distill.test_planning import ELEMENTS
from tests.launcher.tasks.layouts import (
    assert_same_gradients,
    assert_same_run,
    assert_same_statistics,
    kill_and_resume,
    layout,
    plain_sgd,
    results,
    stored,
    train_on_ranks,
)
from tests.launcher.tasks.relation_models import MODELS

STEPS, BATCH, LR = (
    3,
    16,
    0.02,
)  # small groups of batch norms and large rates amplify rounding, see docs/ssl.md
FIGURES = ("step", "loss", "cosine", "target_spread", "lr", "grad_norm")
# 8 x 8 tokens of 16 channels, then 4 x 4 of 32; its norms take the 16 images of a step
STUDENT = (
    *MODELS["lr_net"],
    "model.lr_net.norm_group_images=16",
    *plain_sgd(LR * 8 / BATCH, STEPS),  # which takes the rate of a batch of 8
    f"train.global_batch_size={BATCH}",
)
LARGE = "distill.teacher.image_size=32"  # as many tokens as the student


@pytest.fixture(scope="module")
def alone(shards: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, one micro-batch a step."""
    path = tmp_path_factory.mktemp("distilled") / "run"
    run_alone(*line(shards, path, teacher, *STUDENT, LARGE, *layout(1, 1, BATCH)))
    return path


def assert_same_training(run: Path, wanted: Path) -> None:
    """Figures, gradients and running statistics."""
    for record, other in zip(steps(run), steps(wanted), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5, abs=1e-6)
    assert_same_gradients(run, wanted, LR)
    assert_same_statistics(run, wanted, STEPS)


def test_norms_that_span_two_ranks(shards: Path, tmp_path: Path, teacher: Path, alone: Path) -> None:
    """What `check` accepts, and eight images on each rank."""
    words = line(shards, tmp_path / "run", teacher, *STUDENT, LARGE, *layout(2, 1, 8))
    assert problems(load_config(CONFIG, words[4:]), 2) == []
    train_on_ranks(2, words)
    assert_same_training(tmp_path / "run", alone)
    found, wanted = evaluations(tmp_path / "run")[-1], evaluations(alone)[-1]
    for name in ("eval_loss", "eval_cosine", "eval_knn", "eval_images"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name


def test_the_student_moves(alone: Path) -> None:
    """All of its weights and statistics, in a loss that starts near that of a zero prediction."""
    assert all(0.2 < record["loss"] < 0.35 for record in steps(alone))
    for kind in ("master", "buffer"):
        first, last = stored(alone, 1, kind), stored(alone, STEPS, kind)
        assert [name for name in first if torch.equal(first[name], last[name])] == []


def test_killed_and_resumed_is_the_same_run(shards: Path, tmp_path: Path, teacher: Path, alone: Path) -> None:
    kill_and_resume(line(shards, tmp_path / "run", teacher, *STUDENT, LARGE, *layout(1, 1, BATCH)))
    assert_same_run(tmp_path / "run", alone, FIGURES, STEPS, ("master", "buffer"))


def test_an_earlier_stage(shards: Path, tmp_path: Path) -> None:
    """The stage behind it keeps its weights and its statistics, on one rank and on two."""
    path = write_teacher(tmp_path / "t.safetensors", replace(TEACHER, depths=(2,), num_heads=(2,)))
    runs = {ranks: tmp_path / f"run{ranks}" for ranks in (1, 2)}
    for ranks, run in runs.items():
        more = (*STUDENT, LARGE, "distill.stage=0", *layout(3, 1, BATCH // ranks))
        train_on_ranks(ranks, line(shards, run, path, *more))
    assert_same_training(runs[2], runs[1])
    for kind in ("master", "buffer"):
        first, last = stored(runs[2], 1, kind), stored(runs[2], STEPS, kind)
        for name, tensor in last.items():
            assert torch.equal(tensor, first[name]) is name.startswith("encoder.layers.1."), name


def test_evaluation_and_weights(shards: Path, tmp_path: Path, alone: Path) -> None:
    """`eval` on two ranks gives what training gave; the encoder goes into a classifier, with statistics."""
    outcomes = run_on_ranks(command, 2, "eval", str(alone), "train.eval_batch_size=12")
    assert outcomes[0].code == 0, outcomes[0].err
    found = json.loads((results(alone) / "evaluation.json").read_text())["modes"][0]
    wanted = evaluations(alone)[-1]
    for name in ("loss", "cosine", "target_spread", "knn", "images"):
        assert found[name] == pytest.approx(wanted[f"eval_{name}"], rel=1e-5, abs=1e-6), name
    file = tmp_path / "encoder.safetensors"
    run_alone("export", str(alone), str(file))
    backbone = build_backbone(load_config(alone / "config.yaml").model)
    load_weights(backbone, file)
    own = {
        name: tensor for kind in ("master", "buffer") for name, tensor in stored(alone, STEPS, kind).items()
    }
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, own[f"encoder.{name}"]), name
    options = [
        "train.duration=1 steps",
        f"train.micro_batch_size={BATCH}",
        f"train.pretrained={file}",
        "train.pretrained_head=replace",
    ]
    run_alone("train", str(CONFIG), *overrides(shards, tmp_path / "tuned", *STUDENT, *options))


def test_an_lr_net_teaches_a_swin(shards: Path, tmp_path: Path, alone: Path) -> None:
    """The run above: of images of 16 pixels it has 2 x 2 tokens, as the Swin with experts."""
    words = line(shards, tmp_path / "run", alone, "distill.teacher.image_size=16", *layout(1, 1, 8))
    assert problems(load_config(CONFIG, words[4:]), 1) == []
    run_alone(*words)
    assert all(0.2 < record["loss"] < 0.35 for record in steps(tmp_path / "run"))


@pytest.mark.slow
def test_the_planner(shards: Path, tmp_path: Path, teacher: Path) -> None:
    """Multiply-adds as flops.py counts them, of the classifier without its head, and of the projector."""
    words = line(shards, tmp_path / "run", teacher, *STUDENT, LARGE, *layout(1, 1, BATCH))
    config = load_config(CONFIG, words[4:])
    found = sum(flops_by_part(compute_cost(config, load_hardware("h200")).work).values())
    classifier, projector = 32 * 10, 4 * 4 * 32 * 16
    assert found == cost(config.model).flops - classifier + projector
    assert dict(predict_memory(config, [1], "cpu").items)["teacher"] == 4 * ELEMENTS
