"""Spikes of the gradient norm, made by hand on one rank: seen once, on all ranks, and left out if asked."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from launcher.config.schema import TrainConfig
from launcher.errors import DivergedError
from launcher.exit_codes import ExitCode
from launcher.training.nonfinite import SkippedSteps
from launcher.training.spikes import SpikeGuard
from parallel.zero.master_weights import MasterWeights
from tests.distributed import run_on_ranks
from tests.faults import ScaledLoss
from tests.launcher.running import EXACT, Outcome, command, only, steps
from tests.launcher.short_run import line
from tests.messages import assert_names
from tests.parallel.resuming import state_of
from tests.parallel.training import Layout, Run


def test_the_running_norm_by_hand() -> None:
    """Span 4, warm-up 2, factor 3. 1, 3: 2; 7 > 6 enters as 6: 10 / 3; 5: 3.75; 9: 3.75 + 5.25 / 4."""
    guard = SpikeGuard(3.0, "skip", span=4, warm_up=2)
    assert [guard.accepts(norm) for norm in (1.0, 3.0)] == [True, True]
    assert guard.take() == ""
    assert not guard.accepts(7.0)
    assert_names(guard.take(), "norm of 7, 3.5 times", "(2; train.spike_factor is 3)")
    assert guard.take() == ""
    assert [guard.accepts(norm) for norm in (5.0, 9.0)] == [True, True]
    assert guard.state_dict() == {"norm": pytest.approx(3.75 + 5.25 / 4), "steps": 5, "total": 1}
    other = SpikeGuard(3.0, "log", span=4, warm_up=2)
    other.load_state_dict(guard.state_dict())
    assert other.accepts(100.0)  # logged, and taken
    assert other.total == 2
    assert_names(other.take(), "norm of 100, 19")


def test_before_the_warm_up_nothing_is_a_spike() -> None:
    guard = SpikeGuard(2.0, "skip")
    assert all(guard.accepts(norm) for norm in [1.0] * 19 + [1000.0])
    assert guard.total == 0
    assert not guard.accepts(1000.0)


def test_the_average_follows_a_norm_that_has_come_to_stay() -> None:
    guard = SpikeGuard(2.0, "log")
    for norm in [1.0] * 100 + [10.0] * 300:
        guard.accepts(norm)
    total = guard.total
    assert 100 < total < 200
    guard.accepts(10.0)
    assert guard.total == total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spike_factor": 0.5}, r"train.spike_factor \(0.5\) must be above 1"),
        ({"spike_action": "skip"}, r"train.spike_action \(skip\) needs train.spike_factor"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_skipped_spikes_in_a_row_end_the_run() -> None:
    skipped = SkippedSteps(2)
    skipped.count(1, False, spike="a norm")  # logged only
    skipped.count(2, True, spike="a norm of 9")
    with pytest.raises(
        DivergedError,
        match=r"2 steps in a row up to step 3 were skipped, first at step 2: a norm of 9; the last "
        r"checkpoint stands. .* raise train.spike_factor or look",
    ):
        skipped.count(3, True, spike="a norm of 8")


# --- at every stage


SPIKED = 3  # the step, from 0
STAGES = [Layout(world=2, ep=2, stage=stage, micro=8) for stage in (0, 1, 2, 3)]
MORE = [
    *(Layout(world=2, ep=1, stage=stage, micro=4) for stage in (1, 3)),
    *(Layout(world=2, ep=2, stage=stage, micro=8, precision="bf16") for stage in (0, 1, 2, 3)),
    *(Layout(world=2, ep=2, stage=stage, micro=8, precision="fp16") for stage in (0, 2)),
    *(Layout(world=2, ep=2, stage=stage, micro=8, optimizer="lamb") for stage in (0, 1)),
    Layout(world=2, ep=2, stage=2, micro=8, optimizer="sgd"),
]


@dataclass(frozen=True, kw_only=True)
class Spiked:
    """What one rank saw of six steps, one with a spike on rank 1 alone, and of five without that step."""

    skipped: list[int]
    total: int
    norms: list[float]
    adam_steps: int
    differing: list[str]  # tensors that are not bit for bit those of the run that never made that step
    scales: tuple[float, float]


def spike(layouts: list[Layout], action: str) -> list[Spiked]:
    return [_spiked(layout, action) for layout in layouts]


def _started(layout: Layout, accept: Callable[[float], bool] | None = None) -> tuple[Run, MasterWeights]:
    """A run whose loss scale leaves fp16 room for a spike, which would overflow otherwise."""
    run = Run.start(layout, accept=accept)
    if run.engine.loss_scale:
        run.engine.loss_scale.value = 2.0**8
    return run, MasterWeights(run.engine.deepspeed, ema=lambda step: 0.5)


def _spiked(layout: Layout, action: str) -> Spiked:
    guard = SpikeGuard(10.0, action, warm_up=2)  # type: ignore[arg-type]
    (run, masters), skipped, norms = _started(layout, guard.accepts), [], []
    for step in range(6):
        with ExitStack() as patches:
            if step == SPIKED and run.mesh.rank == 1:
                hooks = [p.register_hook(lambda g: 60 * g) for p in run.engine.module.parameters()]
                patches.callback(lambda hooks=hooks: [hook.remove() for hook in hooks])
            norms += run.train(1).norms
        if run.engine.skipped:
            skipped.append(step)
        else:
            masters.update_ema(step + 1)
    found, other = state_of(masters), _without_it(layout)
    names = [name for name, value in found.items() if not torch.equal(value, other[0][name])]
    scale = run.engine.loss_scale.value if run.engine.loss_scale else 1.0
    return Spiked(
        skipped=skipped,
        total=guard.total,
        norms=norms,
        adam_steps=masters.adam_steps,
        differing=names,
        scales=(scale, other[1]),
    )


def _without_it(layout: Layout) -> tuple[dict[str, Tensor], float]:
    run, masters = _started(layout)
    for step in range(6):
        if step == SPIKED:
            run.next_step += 1
            continue
        run.train(1)
        masters.update_ema(step + 1)
    return state_of(masters), run.engine.loss_scale.value if run.engine.loss_scale else 1.0


@pytest.mark.long
@pytest.mark.parametrize(
    "layouts", [STAGES[2:], *(pytest.param(some, marks=pytest.mark.slow) for some in (STAGES[:2], MORE))]
)
def test_a_skipped_spike_leaves_the_run_as_if_its_step_had_not_been(layouts: list[Layout]) -> None:
    for of_rank in run_on_ranks(spike, 2, layouts, "skip", timeout_s=300):
        for layout, found in zip(layouts, of_rank, strict=True):
            assert found.skipped == [SPIKED], layout
            assert (found.total, found.differing) == (1, []), layout
            assert found.adam_steps == (0 if layout.optimizer == "sgd" else 5), layout
            assert 10 < found.norms[SPIKED] / found.norms[0] < 100, layout
            assert found.scales[0] == found.scales[1], layout


@pytest.mark.slow
def test_a_logged_spike_is_taken() -> None:
    for (found,) in run_on_ranks(spike, 2, [replace(STAGES[2], ep=1)], "log"):
        assert (found.skipped, found.total, found.adam_steps) == ([], 1, 6)
        assert len(found.differing) > 100


# --- in a run

SPIKE = 24  # steps before the one with the spike
LAST = 28


def run_line(shards: Path, run: Path, *more: str) -> list[str]:
    options = (f"train.duration={LAST} steps", "train.spike_factor=8", "train.eval_every=null", *more)
    return [*line(shards, run), *options]


def spiked_commands(lines: list[list[str]], first: int, last: int) -> list[Outcome]:
    """Commands in which the losses of rank 1 are a thousandfold at some steps."""

    def hook(event: str, trainer: Any) -> None:
        if event == "start":
            trainer.task = ScaledLoss(trainer.task, 1.0)
        elif event == "step":
            trainer.task.factor = 1000.0 if first <= trainer.step < last and dist.get_rank() == 1 else 1.0

    return [command(*line, hook=hook) for line in lines]


@pytest.mark.long
def test_a_run_counts_a_spike_says_it_and_knows_the_norm_after_a_resume(shards: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ("train.spike_action=skip",)
    lines = [
        run_line(shards, whole, *more),
        [*run_line(shards, cut, *more), f"train.duration={SPIKE} steps"],
        [*run_line(shards, cut, *more), "--allow-change"],
    ]
    outcomes = run_on_ranks(spiked_commands, 2, lines, SPIKE, SPIKE + 1)[0]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], [outcome.err for outcome in outcomes]
    for run, outcome in ((whole, outcomes[0]), (cut, outcomes[2])):
        assert [record["spikes"] for record in steps(run)] == [0] * SPIKE + [1] * (LAST - SPIKE)
        assert [record["skipped_steps"] for record in steps(run)] == [0] * SPIKE + [1] * (LAST - SPIKE)
        said = [text for text in outcome.err.splitlines() if "running norm" in text]
        assert len(said) == 1
        assert said[0].startswith(f"step {SPIKE + 1}: a gradient norm of ")
        assert said[0].endswith("train.spike_factor is 8): skipped")


@pytest.mark.slow
def test_spikes_in_a_row_end_the_run_and_its_checkpoint_stands(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("train.spike_action=skip", "train.max_skipped_steps=3", "parallel.zero_stage=2")
    (first,), (second,) = run_on_ranks(spiked_commands, 2, [run_line(shards, run, *more)], SPIKE, LAST)
    assert (first.code, second.code) == (ExitCode.DIVERGED, ExitCode.DIVERGED)
    text = (
        f"3 steps in a row up to step {SPIKE + 3} were skipped, first at step {SPIKE + 1}: a gradient norm of"
    )
    assert text in first.err
    assert (run / "checkpoints/latest").read_text() == f"step-{SPIKE:08d}\n"


@pytest.mark.slow
def test_without_a_spike_the_guard_changes_nothing(shards: Path, tmp_path: Path) -> None:
    runs = tmp_path / "guarded", tmp_path / "free"
    lines = [[*line(shards, runs[0]), "train.spike_factor=8"], line(shards, runs[1])]
    run_on_ranks(spiked_commands, 2, lines, 99, 99)
    for found, wanted in zip(steps(runs[0]), steps(runs[1]), strict=True):
        assert only(found, EXACT) == only(wanted, EXACT)
