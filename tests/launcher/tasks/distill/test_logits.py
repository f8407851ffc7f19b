"""Runs of logit distillation: the losses by hand, the layout, the teacher's digest, the classifier."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import launcher
from launcher.config.load import load_config
from launcher.tasks.distill_logits.task import step
from swin_moe.backbone.model import build_model
from swin_moe.random.keyed import sample_keys
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, command, evaluations, only, run_alone, steps
from tests.launcher.tasks.distill.teachers import LR, STEPS, line, write_teacher
from tests.launcher.tasks.layouts import assert_same_gradients, layout
from tests.launcher.tasks.relation_models import MODELS
from tests.models import images_of, randn

MORE = ("distill_logits.temperature=2.0", "distill_logits.hard_weight=0.25", "data.augment={}")
FIGURES = ("step", "loss", "aux_loss", "soft_loss", "hard_loss", "agreement", "lr", "grad_norm")


@pytest.fixture(scope="module")
def alone(shards: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two micro-batches of 4, images mixed and augmented."""
    path = tmp_path_factory.mktemp("logits") / "run"
    run_alone(*line(shards, path, teacher, *MORE, *layout(1, 1, 4), task="distill_logits"))
    return path


def test_two_ranks_are_one(shards: Path, tmp_path: Path, teacher: Path, alone: Path) -> None:
    run = tmp_path / "run"
    one = line(shards, run, teacher, *MORE, *layout(2, 2, 4), task="distill_logits")
    outcomes = run_on_ranks(command, 2, *one)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for record, other in zip(steps(run), steps(alone), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5, abs=1e-7)
    assert_same_gradients(run, alone, LR)
    assert evaluations(run)[-1]["eval_loss"] == pytest.approx(evaluations(alone)[-1]["eval_loss"], rel=1e-5)


def test_batch_norms_of_a_student_span_ranks(shards: Path, tmp_path: Path, teacher: Path) -> None:
    """An LR-Net, whose norms take 8 images: in one micro-batch of one rank, or of two ranks."""
    student = (*MODELS["lr_net"], "model.lr_net.norm_group_images=8")
    runs = {ranks: tmp_path / f"run{ranks}" for ranks in (1, 2)}
    lines = {
        ranks: line(shards, run, teacher, *MORE, *student, *layout(1, 1, 8 // ranks), task="distill_logits")
        for ranks, run in runs.items()
    }
    run_alone(*lines[1])
    outcomes = run_on_ranks(command, 2, *lines[2])
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for record, other in zip(steps(runs[2]), steps(runs[1]), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5, abs=1e-7)
    assert_same_gradients(runs[2], runs[1], LR)


def test_the_loss_has_two_parts(alone: Path) -> None:
    for record in steps(alone):
        wanted = 0.25 * record["hard_loss"] + 0.75 * record["soft_loss"]
        assert record["loss"] == pytest.approx(wanted, rel=1e-6)
        assert 0 <= record["agreement"] <= 1


def test_a_step_by_its_formulas(shards: Path, tmp_path: Path, teacher: Path) -> None:
    """T^2 KL, by probabilities, and the cross-entropy of the labels."""
    options = line(shards, tmp_path, teacher, *MORE[:2], "model.moe=null", task="distill_logits")[4:]
    config = load_config(CONFIG, options)
    model, images = build_model(config.model).eval(), images_of(config.model, 3)
    labels, given = torch.tensor([0, 3, 7]), randn(3, 10, seed=4)
    output = step(config, model, (images, labels), sample_keys(0, torch.arange(3)), given)
    logits = model(images).logits
    p, q = (given / 2).softmax(1), (logits / 2).softmax(1)
    soft = 4 * (p * (p / q).log()).sum(1).mean()
    hard = F.cross_entropy(logits, labels, label_smoothing=config.optim.label_smoothing)
    torch.testing.assert_close(output.terms["soft_loss"], soft.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.loss, 0.25 * hard + 0.75 * soft, rtol=1e-4, atol=1e-6)


def test_the_teacher_is_part_of_the_run(shards: Path, tmp_path: Path, alone: Path) -> None:
    manifest = json.loads((alone / f"checkpoints/step-{STEPS:08d}/manifest.json").read_text())
    assert manifest["state"]["task"]["teacher"]["digest"]
    other = write_teacher(tmp_path / "other.safetensors", seed=1)
    more = (*MORE, *layout(1, 1, 4), f"train.duration={STEPS + 1} steps")
    (refused,) = run_on_ranks(
        command, 1, *line(shards, alone, other, *more, task="distill_logits"), "--allow-change"
    )
    assert refused.code == 2
    assert "the frozen teacher distill_logits.teacher.weights" in refused.err


def test_the_student_is_a_classifier(alone: Path) -> None:
    """As one of task=classification: it is loaded, and evaluated without its teacher."""
    trained = launcher.load(alone)
    assert trained.model.head.out_features == 10
    run_alone("eval", str(alone), "distill_logits.teacher.weights=gone")
