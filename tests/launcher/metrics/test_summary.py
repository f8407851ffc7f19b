"""The summary of records written by hand, and its text for two layers."""

import json
from pathlib import Path

import pytest
import torch

from launcher.config.schema import ParallelConfig
from launcher.metrics.accuracy import ClassificationMetric
from launcher.metrics.summary import render, summarise
from launcher.rundir.directory import RunDirectory
from launcher.tasks.simmim.metric import ReconstructionMetric
from tests.models import small_run

CONFIG = small_run(parallel=ParallelConfig(ep_size=2, zero_stage=2))
METRIC = ClassificationMetric(torch.device("cpu"))
RECONSTRUCTION = ReconstructionMetric(torch.device("cpu"))
LOAD = {"layers.2.blocks.1": [0.5, 0.25, 0.25, 0.0], "layers.10.blocks.1": [0.25, 0.25, 0.25, 0.25]}


def evaluation(step: int, top1: float) -> dict[str, object]:
    values = {
        "top1": top1,
        "top5": top1 + 0.125,
        "loss": 2 - top1,
        "images": 64,
        "images_s": 5.0,
        "expert_load": LOAD,
    }
    return {"step": step, **{f"eval_{name}": value for name, value in values.items()}, "elapsed_s": 100.0}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Five steps, evaluated after the second and the last."""
    speeds, dropped = [1.0, 50.0, 10.0, 30.0, 20.0], [0.9, 0.9, 0.1, 0.2, 0.6]
    steps = [
        {"step": i + 1, "loss": 1.0, "images_s": speeds[i], "dropped_fraction": dropped[i], "elapsed_s": i}
        for i in range(5)
    ]
    records = [*steps[:2], evaluation(2, 0.25), *steps[2:], evaluation(5, 0.75) | {"elapsed_s": 125.4}]
    run = RunDirectory(tmp_path)
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_figures_of_the_last_epoch(run: RunDirectory) -> None:
    summary = summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=3)
    assert summary == {
        "primary": "top1",
        "higher_is_better": True,
        "top1": 0.75,
        "top5": 0.875,
        "loss": 1.25,
        "best": {"step": 5, "top1": 0.75},
        "images_s": 20.0,  # the median of 10, 30, 20
        "dropped_fraction": pytest.approx(0.3),  # the mean of 0.1, 0.2, 0.6
        "expert_load": LOAD,
        "wall_s": 125.4,
        "steps": 5,
        "images": 64,
        "world_size": 4,
        "ep_size": 2,
        "zero_stage": 2,
    }
    assert json.loads(run.summary.read_text()) == summary


def test_a_run_shorter_than_an_epoch_counts_whole(run: RunDirectory) -> None:
    summary = summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=100)
    assert summary["images_s"] == 20.0  # of 1, 10, 20, 30, 50
    assert summary["dropped_fraction"] == pytest.approx(2.7 / 5)


def test_the_command_works_where_the_environment_is_not_active(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.metrics.summary.which", lambda _: None)
    monkeypatch.setattr("sys.executable", str(run.path / "venv" / "bin" / "python"))
    monkeypatch.chdir(run.path)
    text = render(summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=3), run, METRIC)
    assert f"  curves           venv/bin/tensorboard --logdir {run.path}\n" in text


def test_text_of_two_layers(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.metrics.summary.which", lambda name: f"/bin/{name}")
    text = render(summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=3), run, METRIC)
    # a bar is round(share * 4 experts * 4) of 8 eighths: half is 8, a quarter (even) 4, nothing a blank
    assert (
        text
        == f"""
  evaluation       top-1 75.00%, top-5 87.50%, loss 1.2500 on 64 images
  training speed   20 images/s over 5 steps, 2 min 5 s in all
  layout           4 ranks, expert-parallel 2, ZeRO stage 2
  dropped tokens   30.00% in the last epoch of training

  share of the tokens by expert in evaluation (even would be 25.0%)
    layers.2.blocks.1   █▄▄   50.0% 25.0% 25.0%  0.0%
    layers.10.blocks.1  ▄▄▄▄  25.0% 25.0% 25.0% 25.0%

  run directory    {run.path}
  curves           tensorboard --logdir {run.path}
"""
    )


def test_many_experts_are_shown_by_their_extremes(run: RunDirectory) -> None:
    summary = summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=3)
    load = [2 / 32, 0.0] + [1 / 32] * 30
    text = render(summary | {"expert_load": {"layer": load}}, run, METRIC)
    assert f"    layer  █ {'▄' * 30}  max, min:  6.2%  0.0%\n" in text


def test_a_dense_model_has_no_table(run: RunDirectory) -> None:
    text = render(
        summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=3) | {"expert_load": {}}, run, METRIC
    )
    assert "tokens" not in text
    assert text.count("\n\n") == 1


def test_what_a_run_started_from(run: RunDirectory) -> None:
    first = json.dumps(evaluation(0, 0.125))
    run.metrics.write_text(f"{first}\n{run.metrics.read_text()}")
    summary = summarise(run, CONFIG, METRIC, world_size=4, epoch_steps=3)
    assert (summary["first_top1"], summary["first_loss"]) == (0.125, 1.875)
    assert (summary["top1"], summary["steps"]) == (0.75, 5)
    text = render(summary, run, METRIC)
    assert "\n  at the start     top-1 12.50%, top-5 25.00%, loss 1.8750 on 64 images\n" in text
    assert "\n  evaluation       reconstruction loss 1.2500 on 64 images\n" in render(
        summary, run, RECONSTRUCTION
    )
