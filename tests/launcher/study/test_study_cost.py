"""What a grid costs, and when it will be done: worked by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.console.counts import span
from launcher.study.grid.cost import TimeEstimator, TrialCost, costs_of
from launcher.study.grid.requested import RequestedEvaluation, requested_evaluation, sweep_errors
from launcher.study.grid.resolve import PlannedTrial
from launcher.study.grid.trials import Study, Trial
from swin_moe.backbone.flops import Cost, cost
from tests.launcher.running import CONFIG, overrides


def planned(name: str, axes: dict[str, object], shards: Path, *more: str) -> PlannedTrial:
    config = load_config(CONFIG, overrides(shards, "runs/x", *more))
    return PlannedTrial(
        trial=Trial(name=name, axes=axes, seed=0), config=config, requested=RequestedEvaluation()
    )


def test_steps_images_and_multiply_adds(shards: Path) -> None:
    epochs = planned("a", {}, shards, "train.duration=1.3 epochs")
    steps = planned("b", {}, shards, "train.duration=5 steps", "model.moe.top_k=1")
    tars = planned("c", {}, shards, f"data.train={shards}/train/*.tar", "train.duration=2 epochs")
    found = costs_of([epochs, steps, tars])
    # 1.3 x 256 images at 16 a step: 20.8 steps, so 21, of 336 images
    assert (found["a"].steps, found["a"].images) == (21, 336)
    assert found["a"].flops == 3 * cost(epochs.config.model).flops * 336
    assert (found["b"].steps, found["b"].images) == (5, 80)
    assert found["b"].model == cost(steps.config.model)
    assert found["b"].model.flops < found["a"].model.flops
    assert (found["c"].steps, found["c"].flops) == (None, None)
    assert costs_of([tars], epoch_images=1000)["c"].steps == math.ceil(2000 / 16)


def test_the_capacity_changes_no_cost_and_is_counted_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def counting(model: object) -> Cost:
        counted.append(model)
        return Cost(1, 1, 1)

    monkeypatch.setattr("launcher.study.grid.cost.cost", counting)
    trials = [planned(f, {}, shards, f"model.moe.capacity_factor={f}") for f in ("0", "0.5", "1.25")]
    costs_of([*trials, planned("k", {}, shards, "model.moe.top_k=1")])
    assert len(counted) == 2


def test_the_pace_is_that_of_other_seeds_or_else_of_the_multiply_adds(shards: Path) -> None:
    light = TrialCost(model=Cost(1, 1, 10), steps=10, images=100)  # 3 x 10 x 100 = 3000
    heavy = replace(light, model=Cost(1, 1, 40))  # 12000
    trials = [planned(name, {"x": name[0]}, shards) for name in ("a0", "a1", "b0", "b1")]
    costs = {"a0": light, "a1": light, "b0": heavy, "b1": heavy}
    a0, a1, b0, b1 = trials
    estimator = TimeEstimator(costs=costs)
    assert estimator.left_s([(a0, 0.0)], trials, 1) is None
    estimator.finished["a0"] = 30.0
    assert estimator.expected_s(a1, trials) == 30
    assert estimator.expected_s(b0, trials) == 120
    estimator.finished["b0"] = 60.0  # faster than its multiply-adds said
    assert estimator.expected_s(b1, trials) == 60
    # 60 s of b1, of a1 25 of 30 are over: 65 s of one worker, half of two
    assert estimator.left_s([(b1, 0.0), (a1, 25.0)], trials, 1) == 65
    assert estimator.left_s([(b1, 0.0), (a1, 50.0)], trials, 2) == 30
    unknown = TimeEstimator(costs={**costs, "b1": replace(heavy, images=None)}, finished={"a0": 30.0})
    assert unknown.left_s([(b1, 0.0)], trials, 1) is None


def test_spans() -> None:
    assert [span(s) for s in (3, 119, 600, 7200, 200_000)] == ["3 s", "119 s", "10 min", "2.0 h", "2.3 days"]


def test_what_a_checkpoint_is_evaluated_at(shards: Path) -> None:
    study = Study(name="s", axes={}, trials=(), capacity_factors=(0.5, 0.0), top_k=(1, 2))
    moe = planned("a", {}, shards).config
    requested = requested_evaluation(moe, study)
    assert requested.arguments == ("--sweep-capacity", "0.5,0.0", "--sweep-top-k", "1,2")
    assert requested.combinations == {(0.5, 1), (0.0, 1), (0.5, 2), (0.0, 2)}
    dense = planned("b", {}, shards, "model.moe=null").config
    soft = planned("c", {}, shards, "model.moe.router=soft", "model.moe.top_k=1").config
    assert requested_evaluation(dense, study) == requested_evaluation(soft, study) == RequestedEvaluation()
    chooser = ("model.moe.router=expert_choice", "model.moe.eval_capacity_factor=1.0", "model.moe.top_k=1")
    assert requested_evaluation(planned("d", {}, shards, *chooser).config, study).combinations == {(0.5, 1)}
    assert requested_evaluation(moe, replace(study, capacity_factors=(), top_k=())) == RequestedEvaluation()
    many = sweep_errors(moe, replace(study, top_k=(8, 9)))  # of 8 experts
    assert many == ["evaluate.top_k (9) must lie in 1..model.moe.num_experts (8)"]
