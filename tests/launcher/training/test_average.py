"""The moving average evaluated in training: as `eval --ema` does, and without a trace in the training."""

from pathlib import Path

import pytest

from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, EXACT, command, only, overrides, records, steps

STEPS = 6


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    options = (f"train.duration={STEPS} steps", "checkpoint.every=3 steps", "train.ema_decay=0.8", *more)
    return ["train", str(CONFIG), *overrides(shards, run_dir, "parallel.ep_size=2", *options)]


def both(shards: Path, runs: tuple[Path, Path], more: list[str]) -> list[str]:
    """A run that evaluates and one that does so only at its end, then the averages of the first alone."""
    evaluating = command(*line(shards, runs[0], "train.eval_every=3 steps", *more))
    silent = command(*line(shards, runs[1], "train.eval_every=null", *more))
    assert (evaluating.code, silent.code) == (0, 0), evaluating.err + silent.err
    checkpoints = (f"step-{step:08d}" for step in (3, STEPS))
    return [command("eval", str(runs[0]), "--ema", "--checkpoint", name).out for name in checkpoints]


@pytest.mark.parametrize(
    "more",
    [
        ["parallel.zero_stage=0"],
        pytest.param(["parallel.zero_stage=2", "train.precision=bf16"], marks=pytest.mark.long),
        pytest.param(["parallel.zero_stage=3"], marks=pytest.mark.slow),
        pytest.param(["parallel.zero_stage=3", "train.precision=bf16"], marks=pytest.mark.slow),
        pytest.param(["parallel.zero_stage=1", "parallel.offload_optimizer=true"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_average_is_evaluated_beside_the_weights(
    shards: Path, tmp_path: Path, more: list[str], request: pytest.FixtureRequest
) -> None:
    if "parallel.offload_optimizer=true" in more:
        request.getfixturevalue("cpu_adam")
    runs = tmp_path / "evaluating", tmp_path / "silent"
    printed = run_on_ranks(both, 2, shards, runs, more)[0]
    averages = [record for record in records(runs[0]) if "eval_ema_loss" in record]
    assert [record["step"] for record in averages] == [3, STEPS]
    if "train.precision=bf16" not in more:  # `eval` computes in fp32
        for record, text in zip(averages, printed, strict=True):
            assert f"top-1 {record['eval_ema_top1']:.2%}, " in text
            assert f", loss {record['eval_ema_loss']:.4f} on 64" in text
    weights = [record for record in records(runs[0]) if "eval_loss" in record]
    assert all(a["eval_ema_loss"] != w["eval_loss"] for a, w in zip(averages, weights, strict=True))
    for found, wanted in zip(steps(runs[0]), steps(runs[1]), strict=True):
        assert only(found, EXACT) == only(wanted, EXACT)
