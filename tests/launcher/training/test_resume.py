"""A run that was killed and resumed is the run that was never killed, bit for bit; on another layout nearly.

The uninterrupted runs are 40 steps of 16 of 256 images on two ranks: an epoch is 16 steps.
"""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.accelerator import on_either_processor
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import (
    EXACT,
    command,
    descendants,
    evaluations,
    is_alive,
    only,
    start,
    steps,
)
from tests.launcher.training.resumed_runs import STEPS, assert_same_run, engine, train_line

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # to read a checkpoint here


def assert_same_steps_in_tensorboard(run_dir: Path) -> None:
    board = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curve = {event.step: event.value for event in board.Scalars("train/loss")}
    assert len(board.Scalars("train/loss")) == STEPS
    assert curve == pytest.approx({record["step"]: record["loss"] for record in steps(run_dir)}, rel=1e-6)


def test_the_reference_run_has_every_source_of_randomness_and_drops_tokens(uninterrupted: Any) -> None:
    run = uninterrupted(1)
    config = json.loads((run / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())["config"]
    for option in ("drop_rate: 0.1", "drop_path_rate: 0.2", "gate_noise: 1.0", "expert_dropout: 0.1"):
        assert option in config
    assert min(record["dropped_fraction"] for record in steps(run)) > 0
    assert [record["step"] for record in evaluations(run)] == [14, 28, 40]


@pytest.mark.parametrize(
    ("stage", "precision", "kill", "resumed_at"),
    [
        (1, "fp32", ("step", 12), 7),  # in mid-epoch; goes on over the boundaries 16 and 32
        # inside a save: step-00000035.tmp stays behind
        pytest.param(1, "fp32", ("commit", 35), 28, marks=pytest.mark.slow),
        pytest.param(0, "fp32", ("step", 3), 0, marks=pytest.mark.slow),  # before any checkpoint
        pytest.param(3, "bf16", ("step", 12), 7, marks=pytest.mark.slow),
        *(
            # just before the boundary at 16, killed just after it
            pytest.param(stage, precision, ("step", 18), 14, marks=pytest.mark.slow)
            for precision in ("fp32", "bf16")
            for stage in (0, 1, 2, 3)
        ),
        *(
            pytest.param(
                stage,
                "fp16",
                ("step", 18),
                14,
                marks=[pytest.mark.slow, pytest.mark.fp16_instructions(True)],
            )
            for stage in (0, 1, 2, 3)
        ),
    ],
)
def test_killed_and_resumed_is_the_same_run(
    shards: Path,
    tmp_path: Path,
    uninterrupted: Any,
    stage: int,
    precision: str,
    kill: tuple[str, int],
    resumed_at: int,
) -> None:
    run = tmp_path / "run"
    line = train_line(shards, run, *engine(stage, precision))
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(partial(command, kill=kill), 2, *line)
    pointer = run / "checkpoints" / "latest"
    assert (pointer.read_text().strip() if resumed_at else None) == (
        f"step-{resumed_at:08d}" if resumed_at else None
    )
    assert pointer.exists() == bool(resumed_at)
    partials = [path.name for path in run.glob("checkpoints/*.tmp")]
    assert partials == (["step-00000035.tmp"] if kill[0] == "commit" else [])

    assert [outcome.code for outcome in run_on_ranks(command, 2, *line)] == [0, 0]
    assert list(run.glob("checkpoints/*.tmp")) == []
    assert_same_run(run, uninterrupted(stage, precision))
    assert_same_steps_in_tensorboard(run)


@pytest.mark.long
def test_resumed_exactly_at_an_epoch_boundary(shards: Path, tmp_path: Path, uninterrupted: Any) -> None:
    run = tmp_path / "run"
    line = train_line(shards, run, "checkpoint.every=1 epochs")
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(partial(command, kill=("step", 17)), 2, *line)
    assert (run / "checkpoints" / "latest").read_text() == "step-00000016\n"
    assert [outcome.code for outcome in run_on_ranks(command, 2, *line)] == [0, 0]
    assert_same_run(run, uninterrupted(1))


@pytest.mark.slow
def test_killed_between_a_save_and_its_evaluation(shards: Path, tmp_path: Path, uninterrupted: Any) -> None:
    run = tmp_path / "run"
    line = train_line(shards, run)
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(partial(command, kill=("evaluate", 28)), 2, *line)
    assert [outcome.code for outcome in run_on_ranks(command, 2, *line)] == [0, 0]
    assert_same_run(run, uninterrupted(1))


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, ("parallel.ep_size=1", "parallel.zero_stage=0")),
        *on_either_processor(2, ("parallel.ep_size=1", "parallel.zero_stage=3")),
        pytest.param(
            2,
            ("parallel.ep_size=2", "parallel.zero_stage=1", "train.micro_batch_size=4"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_resumed_on_another_layout(
    shards: Path, tmp_path: Path, uninterrupted: Any, ranks: int, options: tuple[str, ...]
) -> None:
    reference, run = uninterrupted(1), tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "latest").write_text("step-00000021\n")
    line = train_line(shards, run, *options)
    assert {outcome.code for outcome in run_on_ranks(command, ranks, *line)} == {0}
    for found, wanted in zip(steps(run), steps(reference), strict=True):
        same = 0 if found["step"] <= 21 else 1e-5
        assert only(found, EXACT) == pytest.approx(only(wanted, EXACT), rel=same, abs=same)


# --- the whole program -------------------------------------------------------------------------------


def wait_until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.slow
def test_sigkill_of_the_program_takes_its_ranks_along_and_resume_is_exact(
    shards: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    run = tmp_path / "run"
    line = [*train_line(shards, run), "--nproc", "2"]
    program = start(*line, cwd=tmp_path)
    wait_until(lambda: run.exists() and (run / "metrics.jsonl").exists() and len(steps(run)) >= 16, 120)
    ranks = descendants(program.pid)
    assert len(ranks) >= 2
    os.kill(program.pid, signal.SIGKILL)
    program.communicate()
    wait_until(lambda: not any(map(is_alive, ranks)), 10)
    assert 16 <= len(steps(run)) < STEPS

    program = start(*line, cwd=tmp_path)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert "evaluation       top-1 " in out
    assert "Traceback" not in err
    assert_same_run(run, uninterrupted(1))
