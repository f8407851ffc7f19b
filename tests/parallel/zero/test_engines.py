"""Precisions, offloading, steps that are skipped and the moving average, at every ZeRO stage alike.

fp16 is compared with fp32 of plain PyTorch, within its rounding: 11 bits of mantissa, 5e-4 a value. Measured,
worst of all: loss 1.4e-4, norm 9.8e-4, gradient 5.1e-3.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from parallel.zero.engine import LossScale
from parallel.zero.master_weights import MasterWeights
from parallel.zero.options import ZeroStage
from tests.distributed import run_on_ranks
from tests.parallel.resuming import differing, load_and_go_on, save_and_go_on, state_of
from tests.parallel.training import (
    Layout,
    Run,
    Trace,
    deviation,
    train_plainly,
    whole,
)

STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)
STEPS = 3
FP16 = [Layout(world=2, ep=2, stage=stage, micro=2, precision="fp16") for stage in (0, 2, 3)]
OFFLOADED = [Layout(world=2, ep=2, stage=stage, micro=2, offload=True) for stage in (1, 2, 3)]
NOISE = 1e-2  # of fp16: a tensor whose gradient is a hundredth of the model's largest


def train_some(layouts: list[Layout]) -> list[Trace]:
    return [whole(Run.start(layout).train(STEPS)) for layout in layouts]


@pytest.fixture(scope="module")
def reference() -> Trace:
    trace = run_on_ranks(train_plainly, 1, 2)[0]
    return replace(trace, losses=trace.losses[:STEPS], norms=trace.norms[:STEPS])


@pytest.fixture(scope="module")
def traces(fp16_processor: bool) -> dict[Layout, Trace]:
    return dict(zip(FP16, run_on_ranks(train_some, 2, FP16)[0], strict=True))


@pytest.mark.parametrize("layout", FP16, ids=str)
def test_fp16_follows_fp32_within_its_rounding(
    layout: Layout, traces: dict[Layout, Trace], reference: Trace
) -> None:
    found = deviation(traces[layout], reference, floor=NOISE)
    assert found.loss < 5e-4, found
    assert found.norm < 3e-3, found
    # Under torch 2.11, which draws other initial weights, 0.084 was measured in one expert's gradient.
    assert found.gradient < (2e-2 if TorchVersion(torch.__version__) >= "2.12" else 0.1), found


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_adam")
def test_an_offloaded_optimizer_trains_as_one_on_the_device(reference: Trace) -> None:
    found = run_on_ranks(train_some, 2, OFFLOADED, timeout_s=900)[0]
    for layout, trace in zip(OFFLOADED, found, strict=True):
        differs = deviation(trace, reference)
        assert max(differs.loss, differs.norm, differs.gradient) < 1e-5, (layout, differs)


# --- a step whose gradient is not finite

POISONED = [Layout(world=2, ep=2, stage=stage, micro=4) for stage in STAGES]
POISONED += [replace(POISONED[stage], precision="bf16") for stage in (1, 2)]
POISONED += [replace(POISONED[stage], precision="fp16") for stage in (0, 3)]


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """What one rank saw of three steps, the second of which is poisoned on rank 1 alone."""

    skipped: list[bool]
    norms: list[float]
    changed: list[bool]  # whether a step changed any master, moment or average
    adam_steps: int
    scale: float  # of fp16's loss, after the steps


def poison_one_rank(layouts: list[Layout]) -> list[Poisoned]:
    return [_poisoned(layout) for layout in layouts]


def _poisoned(layout: Layout) -> Poisoned:
    run = Run.start(layout)
    masters = MasterWeights(run.engine.deepspeed, ema=lambda step: 0.5)
    skipped, norms, changed = [], [], []
    victims = list(run.engine.module.parameters())
    after = state_of(masters)
    for step in range(3):
        before = after
        if step == 1 and run.mesh.rank == 1:
            hook = victims[-1].register_hook(lambda gradient: gradient * float("nan"))
        trace = run.train(1)
        if step == 1 and run.mesh.rank == 1:
            hook.remove()
        if not run.engine.skipped:
            masters.update_ema(step + 1)
        after = state_of(masters)
        skipped.append(run.engine.skipped)
        norms += trace.norms
        changed.append(any(not torch.equal(before[name], after[name]) for name in before))
    scale = run.engine.loss_scale.value if run.engine.loss_scale else 1.0
    return Poisoned(skipped=skipped, norms=norms, changed=changed, adam_steps=masters.adam_steps, scale=scale)


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_adam")
def test_an_offloaded_optimizer_skips_too_and_its_checkpoint_loads(tmp_path: Path) -> None:
    for found in run_on_ranks(poison_one_rank, 2, [replace(OFFLOADED[1], micro=4)], timeout_s=900):
        assert (found[0].skipped, found[0].changed) == ([False, True, False], [True, False, True])
    (saved,) = run_on_ranks(save_and_go_on, 2, tmp_path, [OFFLOADED[1]], 2, timeout_s=300)[0]
    path = tmp_path / "0" / "step-00000003"
    layouts = [replace(OFFLOADED[2], micro=4), Layout(world=2, ep=1, stage=1, micro=8)]
    for loaded in run_on_ranks(load_and_go_on, 2, path, layouts, 2, timeout_s=300)[0]:
        assert differing(loaded, saved) == []
        assert loaded.trace.losses == pytest.approx(saved.trace.losses, rel=1e-6)


@pytest.fixture(scope="module")
def poisoned(fp16_processor: bool) -> list[list[Poisoned]]:
    return run_on_ranks(poison_one_rank, 2, POISONED, timeout_s=300)


@pytest.mark.parametrize("number", range(len(POISONED)), ids=lambda n: str(POISONED[n]))
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(
    number: int, poisoned: list[list[Poisoned]]
) -> None:
    for of_rank in poisoned:
        found = of_rank[number]
        assert found.skipped == [False, True, False]
        assert [norm == float("inf") for norm in found.norms] == [False, True, False]
        assert found.changed == [True, False, True]
        assert found.adam_steps == 2
        assert found.scale == (2.0**15 if POISONED[number].precision == "fp16" else 1.0)


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_a_thousand_good_steps() -> None:
    scale = LossScale()
    assert scale.value == 2.0**16
    scale.update(overflowed=True)
    for _ in range(999):
        scale.update(overflowed=False)
    assert scale.value == 2.0**15
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    for each in (scale, other):
        each.update(overflowed=False)
        assert each.value == 2.0**16
    for _ in range(40):
        scale.update(overflowed=True)
    assert scale.value == 1.0


# --- the moving average

MOMENTS = {1: 0.0, 2: 0.75, 3: 0.5}  # by steps taken
AVERAGED = [Layout(world=2, ep=2, stage=stage, micro=4) for stage in (1, 3)]


def average(layouts: list[Layout]) -> list[tuple[list[dict[str, Tensor]], dict[str, Tensor]]]:
    """The masters before the first step and after each, and the average at the end, by global name."""
    found = []
    for layout in layouts:
        run = Run.start(layout)
        masters = MasterWeights(run.engine.deepspeed, ema=MOMENTS.__getitem__)
        states = [state_of(masters)]
        for step in range(3):
            run.train(1)
            masters.update_ema(step + 1)
            states.append(state_of(masters))
        found.append(([_of_kind(state, "master") for state in states], _of_kind(states[-1], "ema")))
    return found


def _of_kind(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: value for name, value in state.items() if name.startswith(f"{kind}/")}


def test_the_average_is_of_the_masters_of_every_step() -> None:
    for masters, averaged in run_on_ranks(average, 2, AVERAGED)[0]:
        for name, found in averaged.items():
            expected = masters[0][name].double()
            for step, state in enumerate(masters[1:], 1):
                expected = torch.lerp(state[name].double(), expected, MOMENTS[step])
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-8)
