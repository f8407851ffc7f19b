"""Advice against predictions of the changed configurations, and the cost of a run against sums by hand."""

from dataclasses import replace

import pytest

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.search.advice import Advice, advice_lines, advise, changes, passes_share
from launcher.plan.search.run_cost import Terms, run_cost, run_cost_lines
from launcher.plan.time.compute_cost import ComputeCost
from launcher.plan.time.estimate import predict_time
from launcher.plan.time.published import MOE_ON_A100
from launcher.validation.rules import rule_errors
from tests.launcher.plan.machines import MACHINE, predictor
from tests.launcher.plan.tiny_runs import TINY, run_of, work_of

GPU = replace(MACHINE, device="cuda")
CROWDED = replace(GPU, between=replace(GPU.between, message_us=2000.0))
NODES = [2, 2]


def advice_on(machine: Hardware, **parallel: object) -> list[Advice]:
    own = predictor(machine)
    return advise(own.predict(run_of(ep_size=4, **parallel), NODES), own)


def step_s(config: RunConfig) -> float:
    """Predicted without the code under test."""
    costs = ComputeCost(work=work_of(TINY, "cpu"), hardware=CROWDED, precision=config.train.precision)
    return predict_time(config, NODES, CROWDED, costs).step_s


def test_the_slowest_messages_are_what_advice_begins_with() -> None:
    first = advice_on(CROWDED)[0]
    assert first.change.kind in ("exchange", "experts")
    assert first.gain > 0.5


def test_gains_are_those_of_predictions() -> None:
    now, found = step_s(run_of(ep_size=4)), advice_on(CROWDED)
    gains = [one.gain for one in found]
    assert gains == sorted(gains, reverse=True)
    for one in found:
        then = step_s(one.candidate.config)
        assert one.gain == pytest.approx(now / then - 1)
        assert one.line.endswith(f"step {then * 1e3:.1f} ms, {now / then - 1:+.0%}")
    assert len({one.change.kind for one in found}) == len(found)  # the best of each kind


def test_no_change_is_faster_than_the_first() -> None:
    # an independent loop: every change that breaks no rule
    config = run_of(ep_size=4)
    valid = [c.config for c in changes(config, NODES, CROWDED) if not rule_errors(c.config, 4, NODES)]
    fastest = min(step_s(one) for one in valid)
    first = advice_on(CROWDED)[0].candidate.time
    assert first is not None
    assert first.step_s == pytest.approx(fastest)


def test_what_does_not_fit_gets_changes_that_do() -> None:
    own = predictor(GPU)
    config = run_of(zero_stage=0, steps=2)
    needs = own.predict(config, NODES).memory
    assert needs is not None
    tight = replace(GPU, memory_gib=0.9 * needs.peak_bytes / 2**30)
    large = predictor(tight).predict(config, NODES)
    assert large.reason
    found = advise(large, predictor(tight))
    assert found
    assert all(one.candidate.memory.peak_bytes <= tight.memory_bytes for one in found if one.candidate.memory)
    assert "try to make it fit, alone:" in advice_lines(large, found, predictor(tight))
    none = replace(GPU, memory_gib=1e-6)
    large = predictor(none).predict(config, NODES)
    assert "no single change makes it fit; --search tries combinations" in advice_lines(
        large, advise(large, predictor(none)), predictor(none)
    )


def test_compilation_is_named_with_the_most_that_it_can_save() -> None:
    own, config = predictor(GPU), run_of()
    lines = advice_lines(own.predict(config, NODES), [], own)
    share = passes_share(config, own)
    assert 0 < share < 1
    assert lines[-1].endswith(f"passes over memory ({share:.0%} of compute)")
    compiled = replace(config, train=replace(config.train, compile=True))
    assert not any("compile" in line for line in advice_lines(own.predict(compiled, NODES), [], own))


def test_the_cost_of_a_run() -> None:
    config = run_of()
    config = replace(config, train=replace(config.train, duration="3 epochs"))
    one = predictor(GPU).timed(config, NODES)
    assert one.time is not None
    assert run_cost(one, Terms()) is None  # how many images an epoch has is not known
    found = run_cost(one, Terms(epoch_images=1001, price_per_gpu_hour=2.0))
    assert found is not None
    assert found.steps == 376  # 3 x 1001 / 8 = 375.4
    assert found.hours == pytest.approx(376 * one.time.step_s / 3600)
    assert found.gpu_hours == pytest.approx(4 * found.hours)
    assert found.price == pytest.approx(8 * found.hours)
    train = replace(config.train, duration="50 steps")
    steps = run_cost(replace(one, config=replace(config, train=train)), Terms())
    assert steps is not None
    assert (steps.steps, steps.price) == (50, None)


def test_the_cost_is_told_at_the_speed_that_published_runs_reached() -> None:
    config = run_of()
    config = replace(config, train=replace(config.train, duration="1_000_000_000 images"))
    one = predictor(GPU).timed(config, NODES)
    found = run_cost(one, Terms())
    assert found is not None
    lines = list(run_cost_lines(one, Terms(), "cuda"))
    assert lines[0].endswith(f"steps): {found.text()}")
    assert lines[1].startswith(f"  at {MOE_ON_A100.low:.0%} of that speed, the least of".replace("%", " %"))
    hours, gpu_hours = found.hours / MOE_ON_A100.low, found.gpu_hours / MOE_ON_A100.low
    assert lines[1].endswith(f": {hours:,.1f} h, {gpu_hours:,.0f} GPU-hours")
