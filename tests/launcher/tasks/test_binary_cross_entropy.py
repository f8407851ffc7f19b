"""`optim.loss: bce` against timm's BinaryCrossEntropy, by hand, and in a run on any layout."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import OptimConfig
from launcher.tasks.classification.task import step
from swin_moe.heads.classification import binary_cross_entropy
from swin_moe.random.keyed import sample_keys
from swin_moe.registry import build_model
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, command, evaluations, only, overrides, run_alone, steps
from tests.models import randn, small_run, small_swin

B, K = 8, 5
OPTIONS = [
    {},
    {"target_threshold": 0.2},
    {"sum_classes": True},
    {"target_threshold": 0.3, "sum_classes": True},
]


def timms_targets(labels: Tensor, mixed: bool, smoothing: float) -> Tensor:
    """What timm's training gives its loss: labels, or the smoothed targets of Mixup."""
    return mixup_target(labels, K, lam=0.7, smoothing=smoothing) if mixed else labels


def our_targets(labels: Tensor, mixed: bool) -> Tensor:
    """The same, not smoothed: timm mixes with the batch in reversed order."""
    if not mixed:
        return labels
    one_hot = F.one_hot(labels, K).float()
    return 0.7 * one_hot + (1 - 0.7) * one_hot.flip(0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_outputs_and_gradients_are_timms(options: dict[str, Any], smoothing: float, mixed: bool) -> None:
    labels = torch.arange(B) % K
    ours, theirs = (randn(B, K).mul(3).requires_grad_() for _ in range(2))
    loss = binary_cross_entropy(ours, our_targets(labels, mixed), smoothing, **options)
    wanted = BinaryCrossEntropy(smoothing, **options)(theirs, timms_targets(labels, mixed, smoothing))
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_by_hand() -> None:
    """Logits (0, ln 3), class 1, smoothing 0.2: targets (0.1, 0.9), probabilities (1/2, 3/4).

    -(0.1 ln 1/2 + 0.9 ln 1/2) = ln 2, and -(0.9 ln 3/4 + 0.1 ln 1/4); their mean, or their sum.
    """
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([1])
    both = math.log(2) - 0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert binary_cross_entropy(logits, labels, 0.2).item() == pytest.approx(both / 2, rel=1e-6)
    summed = binary_cross_entropy(logits, labels, 0.2, sum_classes=True)
    assert summed.item() == pytest.approx(both, rel=1e-6)
    hard = binary_cross_entropy(logits, labels, 0.2, target_threshold=0.5)
    assert hard.item() == pytest.approx((math.log(2) - math.log(0.75)) / 2, rel=1e-6)


def test_half_precision_logits_lose_nothing_more() -> None:
    logits, labels = randn(B, K).bfloat16(), torch.arange(B) % K
    assert binary_cross_entropy(logits, labels, 0.1) == binary_cross_entropy(logits.float(), labels, 0.1)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_task_takes_its_options(mixed: bool) -> None:
    """The step of the task, labels or mixed targets, against timm's loss of the same logits."""
    optim = OptimConfig(loss="bce", label_smoothing=0.1, bce_target_threshold=0.25, bce_sum_classes=True)
    config = small_run(small_swin(num_classes=K), optim=optim)
    model = build_model(config.model, seed=0).eval()
    images, labels, keys = randn(B, 3, 32, 32), torch.arange(B) % K, sample_keys(0, torch.arange(B))
    output = step(config, model, (images, our_targets(labels, mixed)), keys)
    wanted = BinaryCrossEntropy(0.1, 0.25, sum_classes=True)(
        model(images, keys).logits, timms_targets(labels, mixed, 0.1)
    )
    torch.testing.assert_close(output.loss, wanted, rtol=1e-6, atol=0)


STEPS = 4
BCE = ("optim.loss=bce", "optim.bce_target_threshold=0.2", f"train.duration={STEPS} steps")
FIGURES = ("step", "loss", "aux_loss", "lr", "grad_norm", "dropped_fraction")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, images mixed."""
    path = tmp_path_factory.mktemp("bce") / "run"
    run_alone("train", str(CONFIG), *overrides(shards, path, *BCE))
    return path


@pytest.mark.parametrize(
    "layout",
    [["parallel.ep_size=2"], pytest.param(["train.micro_batch_size=4"], marks=pytest.mark.slow)],
)
def test_two_ranks_are_one(shards: Path, tmp_path: Path, whole: Path, layout: list[str]) -> None:
    line = ["train", str(CONFIG), *overrides(shards, tmp_path / "run", *BCE, *layout)]
    outcomes = run_on_ranks(command, 2, *line)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for found, wanted in zip(steps(tmp_path / "run"), steps(whole), strict=True):
        assert only(found, FIGURES) == pytest.approx(only(wanted, FIGURES), rel=2e-5)
    assert evaluations(tmp_path / "run")[-1]["eval_loss"] == pytest.approx(
        evaluations(whole)[-1]["eval_loss"], rel=1e-5
    )


def test_its_loss_is_of_ten_problems_of_two_classes(whole: Path) -> None:
    """At the start a logit is near 0, so that each class costs ln 2; the cross-entropy would cost ln 10."""
    assert steps(whole)[0]["loss"] == pytest.approx(math.log(2), rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optim.bce_target_threshold=0.2"], r"optim.bce_target_threshold \(0.2\) needs optim.loss=bce"),
        (["optim.bce_sum_classes=true"], r"optim.bce_sum_classes \(True\) needs optim.loss=bce"),
        (["optim.loss=bce", "optim.bce_target_threshold=1.0"], r"\(1.0\) must lie in \[0, 1\)"),
    ],
)
def test_options_that_have_no_meaning(options: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIG, options)
