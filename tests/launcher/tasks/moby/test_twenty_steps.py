"""Twenty steps of MoBY with experts: the losses on any layout are those of one rank within 1e-5.

Layouts round differently, and training amplifies the difference; the fewer images the batch norms take their
statistics over, the faster (docs/ssl.md). With groups of 4, as in test_moby.py, it grows about threefold a
step, so that the losses of 20 steps could not be compared. With groups of 16 they differ by less than 1e-6.
"""

from pathlib import Path

import pytest

from tests.launcher.running import run_alone, steps
from tests.launcher.tasks.layouts import layout, train_on_ranks
from tests.launcher.tasks.moby.runs import line

pytestmark = pytest.mark.slow

STEPS, BATCH, LR = 20, 32, 0.01
OPTIONS = (
    "model.attention=cosine",  # SwinV2 with experts
    f"train.duration={STEPS} steps",
    f"train.global_batch_size={BATCH}",
    "train.eval_every=null",
    "checkpoint.every=null",
    "moby.head={hidden_dim: 24, out_dim: 8, norm_group_images: 16}",
    "moby.queue=96",
    f"optim.base_lr={LR * 512 / BATCH}",
    f"optim.min_lr={LR * 512 / BATCH}",
)
# ranks, ep_size, ZeRO stage, micro-batch; the groups of 16 images span two of the 4 ranks
LAYOUTS = [(1, 1, 0, 16), (1, 1, 3, 16)]
LAYOUTS += [(2, 2, stage, 16) for stage in range(4)]
LAYOUTS += [(4, 2, stage, 8) for stage in range(4)]


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses on one rank, one micro-batch a step."""
    run = tmp_path_factory.mktemp("alone") / "run"
    run_alone(*line(shards, run, *OPTIONS, *layout(0, 1, BATCH)))
    losses = [record["loss"] for record in steps(run)]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < sum(losses[:5]) - 2.5  # it trains: the last ones are lower by 0.5 each
    return losses


@pytest.mark.parametrize(("ranks", "ep_size", "stage", "micro"), LAYOUTS)
def test_losses_over_twenty_steps(
    shards: Path, tmp_path: Path, alone: list[float], ranks: int, ep_size: int, stage: int, micro: int
) -> None:
    run = tmp_path / "run"
    train_on_ranks(ranks, line(shards, run, *OPTIONS, *layout(stage, ep_size, micro)))
    assert [record["loss"] for record in steps(run)] == pytest.approx(alone, rel=1e-5)
