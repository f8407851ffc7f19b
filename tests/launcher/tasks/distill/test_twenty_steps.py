"""Twenty steps of both distillations: the losses on any layout are those of one rank within 1e-5.

The students are a SwinV2 with experts and an LR-Net, whose batch norms take the 16 images of a step: fewer
images and larger learning rates amplify how layouts round (docs/ssl.md).
"""

from pathlib import Path

import pytest

from tests.launcher.running import run_alone, steps
from tests.launcher.tasks.distill.teachers import line
from tests.launcher.tasks.layouts import layout, plain_sgd, train_on_ranks
from tests.launcher.tasks.relation_models import MODELS

pytestmark = pytest.mark.slow

STEPS, BATCH = 20, 16
LENGTH = (f"train.global_batch_size={BATCH}", "train.eval_every=null", "checkpoint.every=null")
SWIN = ("model.attention=cosine",)
LR_NET = (*MODELS["lr_net"], "model.lr_net.norm_group_images=16")
LARGE = "distill.teacher.image_size=32"  # as many tokens as the student
STUDENTS = {  # by task and student: options, and a learning rate
    ("distill", "swin"): (SWIN, 0.5),
    ("distill_logits", "swin"): (SWIN, 0.5),
    ("distill", "lr_net"): ((*LR_NET, LARGE), 0.05),
    ("distill_logits", "lr_net"): (LR_NET, 0.01),
}
# ranks, ep_size, ZeRO stage, micro-batch
ONE_RANK = [(1, 1, 3, 4)]
ON_RANKS = [(ranks, 2, stage, 4) for ranks in (2, 4) for stage in range(4)]


@pytest.fixture(scope="module", params=STUDENTS, ids="-".join)
def student(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A task and a student."""
    return request.param


def run_line(student: tuple[str, str], shards: Path, run: Path, teacher: Path, *more: str) -> list[str]:
    """The command of a run."""
    options, lr = STUDENTS[student]
    rate = plain_sgd(lr * 8 / BATCH, STEPS)  # which takes the rate of a batch of 8
    return line(shards, run, teacher, *options, *rate, *LENGTH, *more, task=student[0])


@pytest.fixture(scope="module")
def alone(
    student: tuple[str, str], shards: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """The losses on one rank, one micro-batch a step."""
    run = tmp_path_factory.mktemp("alone") / "run"
    run_alone(*run_line(student, shards, run, teacher, *layout(0, 1, BATCH)))
    losses = [record["loss"] for record in steps(run)]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < sum(losses[:5])  # it trains
    return losses


@pytest.mark.parametrize(("ranks", "ep_size", "stage", "micro"), ONE_RANK + ON_RANKS)
def test_losses_over_twenty_steps(
    student: tuple[str, str],
    shards: Path,
    tmp_path: Path,
    teacher: Path,
    alone: list[float],
    ranks: int,
    ep_size: int,
    stage: int,
    micro: int,
) -> None:
    if student[1] == "lr_net":  # no experts, and one micro-batch a step
        ep_size, micro = 1, BATCH // ranks
    run = tmp_path / "run"
    train_on_ranks(ranks, run_line(student, shards, run, teacher, *layout(stage, ep_size, micro)))
    assert [record["loss"] for record in steps(run)] == pytest.approx(alone, rel=1e-5)
