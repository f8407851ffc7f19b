"""What a report lacks has a true reason, and following its advice adds it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.study.drawing.chart import Chart
from launcher.study.grid.trials import run_directory
from launcher.study.report.charts_capacity import (
    by_inference_capacity,
    by_training_capacity,
    capacity_sections,
)
from launcher.study.report.charts_cost import by_cost
from launcher.study.report.charts_fit import fit_chart, fits
from launcher.study.report.charts_layers import layer_chart, layer_curves
from launcher.study.report.charts_pareto import PRICES, choices, pareto_chart
from launcher.study.report.data import LOSS, TOP1, ReportData
from launcher.study.report.paper import (
    accuracy_by_experts,
    comparison,
    is_same_task,
    paper_section,
    speed_by_capacity,
)
from launcher.study.report.report import read
from launcher.study.report.section import Missing
from launcher.study.report.summary import facts
from launcher.study.report.tables import published_tables
from tests.launcher.study.study_runs import MOE, moe, trial, write_all

DENSE: dict[str, Any] = {"model.moe": None}
THEIR_TASK = {"model.num_classes": 21_841, "model.image_size": 192, "model.window_size": 6}


def fact(start: str) -> Callable[[ReportData], Any]:
    """The sentence that begins so, or the reason why there is none."""
    return lambda data: next(
        each for each in facts(data) if (each.what if isinstance(each, Missing) else each).startswith(start)
    )


PARTS: dict[str, Callable[[ReportData], Any]] = {  # a chart or a sentence, or why there is none
    "Accuracy by capacity in training": lambda data: by_training_capacity(data, TOP1),
    "Loss by capacity at inference": lambda data: by_inference_capacity(data, LOSS, None),
    "Accuracy by all parameters": lambda data: by_cost(data, TOP1, "parameters"),
    "Accuracy against FLOPs at inference": lambda data: pareto_chart(data, choices(data), TOP1, PRICES[1]),
    "Dropped share by layer, %": lambda data: layer_chart(data, layer_curves(data), "dropped_fraction"),
    "Speed by capacity, beside the published": speed_by_capacity,
    "Experts, beside the published": accuracy_by_experts,
    "Loss by number of experts": lambda data: fit_chart(data, fits(data), "experts"),
    **{start: fact(start) for start in ("Experts over dense", "Capacity at inference", "Priority where")},
}


def missing(data: ReportData, part: str) -> Missing:
    """Why a part of the page is missing."""
    found = PARTS[part](data)
    assert isinstance(found, Missing), part
    return found


def edited(root: Path, change: Callable[[dict[str, Any]], bool]) -> ReportData:
    """The data after evaluations at inference were left out that `change` is false of."""
    for path in root.glob("cells/*/eval/*/sweep.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"rows": [row for row in record["rows"] if change(row)]}))
    return read(root)


def study(root: Path, axes: Sequence[dict[str, Any]], *, seeds: int = 1) -> ReportData:
    return read(write_all(root, [trial(each, seed) for each in axes for seed in range(seeds)]))


def test_nothing_is_evaluated_with_one_choice(tmp_path: Path) -> None:
    """The sweep over capacity is there, with k=2; the advice is what the study of the next test has."""
    study(tmp_path / "s", [moe(8), moe(4)])
    data = edited(tmp_path / "s", lambda row: row["top_k"] == 2)
    data = replace(data, study=replace(data.study, top_k=(2,)))
    found = missing(data, "Speed by capacity, beside the published")
    assert found.why == "nothing is evaluated with k=1 (only with k=2)"
    assert found.add == "`top_k: [1, 2]` in `evaluate` of the study's file"
    assert isinstance(by_inference_capacity(data, LOSS, 2), Chart)


def test_what_was_requested_and_not_made_is_run_again(tmp_path: Path) -> None:
    study(tmp_path / "s", [moe(8)])
    data = edited(tmp_path / "s", lambda row: row["top_k"] == 2)
    found = missing(data, "Speed by capacity, beside the published")
    assert (found.why, "`swin-moe study run`" in found.add) == ("nothing is evaluated with k=1 yet", True)


def test_a_complete_study_lacks_no_chart_of_its_own(tmp_path: Path) -> None:
    axes = [moe(4), moe(16), moe(2), moe(8), moe(8, 0.5), moe(8, priority=False), DENSE]
    data = study(tmp_path / "s", axes)
    lacking = [part for part, make in PARTS.items() if isinstance(make(data), Missing)]
    assert lacking == [
        "Loss by capacity at inference",
        "Experts, beside the published",
    ]  # of no k; other data


@pytest.mark.parametrize(
    ("what", "without", "why", "add", "with_it"),
    [
        (
            "Accuracy by capacity in training",
            [moe(8, 1.25), DENSE],
            "all trials with experts have model.moe.capacity_factor=1.25",
            "`axes: {model.moe.capacity_factor: [1.25, 0.5]}`",
            [moe(8, 1.25), moe(8, 0.5), DENSE],
        ),
        (
            "Accuracy by capacity in training",
            [moe(8, 1.25), moe(4, 0.5)],
            "no two trained trials of one seed differ in model.moe.capacity_factor alone",
            "trials that have 1.25 and 0.5 and all other options the same",
            [moe(8, 1.25), moe(8, 0.5)],
        ),
        (
            "Experts over dense",
            [moe(8), moe(4)],
            "no trained trial is without experts",
            "`include: [{model.moe: null}]`",
            [moe(8), moe(4), DENSE],
        ),
        (
            "Dropped share by layer, %",
            [DENSE],
            "no trained trial has experts",
            "`axes: {model.moe.num_experts: [8, 16]}`",
            [DENSE, moe(8), moe(16)],
        ),
        (
            "Loss by number of experts",
            [moe(4), moe(8)],
            "too few sizes (2) to see a law; at least 4 are needed",
            "`axes: {model.moe.num_experts: [4, 8, 16, 32]}`",
            [moe(4), moe(8), moe(16), moe(32)],
        ),
        (
            "Priority where",
            [moe(8)],
            "all trials with experts have model.moe.batch_prioritized=true",
            "`axes: {model.moe.batch_prioritized: [true, false]}`",
            [moe(8), moe(8, priority=False)],
        ),
        (
            "Accuracy by all parameters",
            [moe(8), moe(8, 0.5)],
            "all trials have the same (256.7k)",
            "`axes: {model.moe.num_experts: [8, 16]}`",
            [moe(8), moe(16)],
        ),
    ],
)
def test_the_advice_adds_what_is_missing(
    tmp_path: Path,
    what: str,
    without: Sequence[dict[str, Any]],
    why: str,
    add: str,
    with_it: Sequence[dict[str, Any]],
) -> None:
    found = missing(study(tmp_path / "without", without), what)
    assert (found.why, found.add) == (why, add)
    assert found.text == f"{found.what}: {why}. To add it: {add}."
    assert isinstance(PARTS[what](study(tmp_path / "with", with_it)), Chart | str)


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        (
            lambda row: row["capacity_factor"] == 0.5,
            "checkpoints are not evaluated at two capacities (only 0.5)",
        ),
        (
            lambda row: row["top_k"] == 2,
            "no checkpoint is evaluated with the k of its training (only with k=2)",
        ),
    ],
)
def test_reasons_of_a_sweep_that_falls_short(tmp_path: Path, kept: Any, why: str) -> None:
    study(tmp_path / "s", [moe(8)])
    assert missing(edited(tmp_path / "s", kept), "Capacity at inference").why == why


def test_dropless_is_no_capacity_to_compare_speeds_at(tmp_path: Path) -> None:
    study(tmp_path / "s", [moe(8)])
    data = edited(tmp_path / "s", lambda row: row["capacity_factor"] in (0.0, 0.5))
    found = missing(data, "Speed by capacity, beside the published")
    assert "two capacities above 0 with k=1 (only dropless and 0.5)" in found.why
    assert found.add == "`capacity_factors: [0.0, 0.5, 1.25]` in `evaluate` of the study's file"


def test_nothing_evaluated(tmp_path: Path) -> None:
    root = write_all(tmp_path / "s", [trial(moe(e)) for e in (4, 8)])
    for path in root.glob("cells/*/eval/*/*"):
        path.unlink()
    data = read(root)
    (_, at_inference) = capacity_sections(data)
    assert [each.why for each in at_inference.missing] == [
        "no checkpoint of a trial with experts is evaluated"
    ] * 2
    assert missing(data, "Accuracy against FLOPs at inference").why == "no checkpoint is evaluated"


def test_trials_without_a_loss(tmp_path: Path) -> None:
    """One of two trials has none: nothing is compared by it, and the page names the trial."""
    trials = [trial(moe(e)) for e in (4, 8)]
    root = write_all(tmp_path / "s", trials)
    path = run_directory(root, trials[0]) / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: value for name, value in summary.items() if name != "loss"} | {"primary": "top1"})
    )
    data = read(root)
    assert (
        missing(data, "Loss by number of experts").why
        == f"1 of 2 trained trials have no loss ({trials[0].name})"
    )
    assert [metric.key for metric in data.incomplete_metrics] == ["loss"]


def test_trials_with_no_metric_in_common(tmp_path: Path) -> None:
    trials = [trial(moe(e)) for e in (4, 8)]
    root = write_all(tmp_path / "s", trials)
    for name, each in zip(("map", "iou"), trials, strict=True):
        path = run_directory(root, each) / "summary.json"
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("top1", "top5", "loss")}
        path.write_text(json.dumps(kept | {"primary": name, name: 0.5}))
    assert facts(read(root)) == ["The trials have no metric in common, so they cannot be compared."]


def accuracies(data: ReportData) -> tuple[list[str], int]:
    """The columns of the table beside the published figures, and its rows that compare."""
    matching, rest = published_tables(data, comparison(data))
    assert len(matching.rows) + len(rest.rows) == 23
    assert rest.is_folded
    return list(matching.columns), len(matching.rows)


def test_accuracies_on_other_data_are_not_set_beside_the_published(tmp_path: Path) -> None:
    data = study(tmp_path / "s", [moe(8), moe(16), DENSE])
    assert not is_same_task(data)
    columns, rows = accuracies(data)
    assert not [name for name in columns if "top-1" in name]
    assert rows == 3  # speeds with k=1 at 1.25, 1 and 0.5; 0.625 was not evaluated
    assert comparison(data).our_top1.isna().all()
    assert "accuracies on different data do not compare" in missing(data, "Experts, beside the published").why


def test_accuracies_on_their_data_are(tmp_path: Path) -> None:
    axes = [each | THEIR_TASK for each in (moe(8), moe(16), DENSE)]
    data = study(tmp_path / "s", axes, seeds=2)
    assert is_same_task(data)
    columns, rows = accuracies(data)
    assert "our top-1" in columns
    # capacities 1.25, 1 and 0.5 with k=1 and k=2; dense, E=8 and E=16 of both sizes
    assert rows == 12
    names = [chart.name for chart in paper_section(data).charts]
    assert names == ["published-capacity", "published-speed", "published-experts"]
    assert f"{MOE}num_experts" in data.study.axes
