"""What is read of a study's trials, whatever became of them, and the figures and sentences made of it."""

import csv
import json
import re
from pathlib import Path

import pytest

from launcher.study.grid.trials import run_directory
from launcher.study.report.data import ReportData
from launcher.study.report.labels import CAPACITY, EXPERTS, PRIORITY, label
from launcher.study.report.report import read
from launcher.study.report.results import TrialResult
from launcher.study.report.summary import summary
from launcher.study.report.tables import open_table
from tests.launcher.study.study_runs import (
    FACTORS,
    STEPS,
    grid,
    loss_of,
    moe,
    top1_of,
    trial,
    trouble,
    write_all,
)


@pytest.fixture(scope="module")
def data(reported: Path) -> ReportData:
    return read(reported)


def table(reported: Path, name: str) -> list[dict[str, str]]:
    with (reported / "report" / name).open() as file:
        return list(csv.DictReader(file))


def of(data: ReportData, name: str) -> TrialResult:
    return next(result for result in data.results if result.trial == trouble()[name])


def test_states_and_reasons(data: ReportData) -> None:
    assert sum(result.state == "finished" for result in data.results) == len(grid())
    said = {name: (of(data, name).state, of(data, name).reason) for name in trouble()}
    assert said["failed"] == ("failed", f"the loss is <nan> & stays so (at step 7 of {STEPS})")
    assert said["stopped"] == ("stopped", f"requested to stop (at step 60 of {STEPS})")
    assert said["waiting"] == ("waiting", "it has not been started")
    assert said["killed"][0] == "failed"
    assert "killed (no message left)" in said["killed"][1]
    assert said["not evaluated"] == ("not evaluated", "its checkpoint is not evaluated")
    assert said["broken"][0] == "failed"
    assert "summary.json lacks loss, images_s, dropped_fraction" in said["broken"][1]
    assert {row[0] for row in open_table(data).rows} == {each.name for each in trouble().values()}


def test_groups_are_means_and_spreads_over_seeds(data: ReportData) -> None:
    # seeds add 0, 0.004 and -0.004 to the loss: mean 0, standard deviation 0.004
    assert data.spread("E=16 f=1.25 BPR", "loss") == pytest.approx((16**-0.1, 0.004, 3))
    assert data.spread("E=16 f=1.25 BPR", "top1").std == pytest.approx(0.12, abs=1e-4)  # 100 x 0.3 x 0.004
    assert data.dense == ["dense"]
    assert data.spread("dense", "loss") == pytest.approx((1.0, 0.004, 3))
    short = "E=8 f=0.5 BPR"
    assert data.spread(short, "loss").n == 4  # the one that is not evaluated is trained all the same
    rows = data.evaluations[data.evaluations.configuration == short]
    assert len(rows[(rows.capacity_factor == 0.5) & (rows.top_k == 1)]) == 3


def test_sizes_are_those_of_the_model(data: ReportData) -> None:
    """By hand: the experts of two blocks (C = 24 and 48, hidden 4 C, no second bias), a router's row each."""
    sizes = data.trials.groupby("configuration").first()
    by_experts = {data.settings[each][EXPERTS]: sizes.loc[each] for each in data.experts}
    one = sum(c * 4 * c + 4 * c + 4 * c * c for c in (24, 48))
    router = 24 + 48
    four, eight = by_experts[4], by_experts[8]
    assert eight.parameters - four.parameters == 4 * (one + router)
    assert eight.active_parameters - four.active_parameters == 4 * router
    result = next(result for result in data.results if result.trial.axes == {"model.moe": None})
    assert result.images == STEPS * 128
    assert result.cost is not None
    assert result.train_flops == sizes.train_flops["dense"] == 3 * result.cost.flops * STEPS * 128


def test_pairs_differ_in_one_option_alone(data: ReportData) -> None:
    pairs = data.pairs(PRIORITY, False, True)
    assert len(pairs) == 3  # at three capacities
    assert all(data.settings[a][CAPACITY] == data.settings[b][CAPACITY] for a, b in pairs)
    # without priority a shortage costs half as much again: 0.08 x 0.75 and 0.08 x 0.25, by 0.5, and nothing
    changes = data.differences(pairs, "loss")
    assert sorted(changes) == pytest.approx(sorted([-0.03] * 3 + [-0.01] * 3 + [0.0] * 3))


def test_sentences_have_the_numbers(data: ReportData) -> None:
    told = " ".join(summary(data))
    # accuracy is 90 - 30 x loss: f from 0.5 to 1.25 gains 1.8 with priority and 2.7 without, three seeds each
    assert f"{CAPACITY} from 0.5 to 1.25 in training: +2.25 ± 0.49 points, over 6 pairs" in told
    best, dense = 90 - 30 * 32**-0.1, 60.0
    assert f"Best top-1 accuracy: E=32 f=1.25 BPR with {best:.2f} ± 0.12 %" in told
    assert f"by {best - dense:+.2f} ± 0.00 points" in told


def agrees(text: str, wanted: str) -> bool:
    """Whether a number is within 1e-5 of another, or a text the same."""
    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", wanted):
        return float(text) == pytest.approx(float(wanted), rel=1e-5)
    return text == wanted


def test_the_numbers_of_an_older_version(reported: Path, data: ReportData) -> None:
    """Recorded when Student's t was a table of three decimals."""
    recorded = Path(__file__).parents[2] / "data" / "study_report"
    for name in ("fits.csv", "pareto.csv", "published.csv"):
        with (recorded / name).open() as file:
            before = list(csv.DictReader(file))
        for wanted, row in zip(before, table(reported, name), strict=True):
            for column, text in wanted.items():
                assert agrees(row[column], text), (name, column, row[column], text)
    assert summary(data) == (recorded / "sentences.txt").read_text().splitlines()


def test_what_the_seeds_do_not_tell_apart_is_said(tmp_path: Path) -> None:
    trials = [trial(moe(8, 1.25, priority=p), s) for p, s in ((True, 0), (True, 1), (False, 2), (False, 0))]
    told = summary(read(write_all(tmp_path / "s", trials)))
    assert "a difference within the spread of the seeds" in told[0]
    one = summary(read(write_all(tmp_path / "t", trials[:1])))
    assert "it is the only configuration" in one[0]


def test_tables_equal_what_was_measured(reported: Path, data: ReportData) -> None:
    trials = {row["cell"]: row for row in table(reported, "cells.csv")}
    assert len(trials) == len(data.results)
    swept = table(reported, "sweep.csv")
    for each in grid():
        run = run_directory(reported, each)
        summary = json.loads((run / "summary.json").read_text())
        for name in ("top1", "top5", "loss", "images_s", "dropped_fraction"):
            assert float(trials[each.name][name]) == summary[name]
        if path := next(run.glob("eval/*/sweep.json"), None):
            rows = [row for row in swept if row["cell"] == each.name]
            for row, wanted in zip(rows, json.loads(path.read_text())["rows"], strict=True):
                assert all(float(row[name]) == wanted[name] for name in ("capacity_factor", "top1", "loss"))
    assert trials[trouble()["waiting"].name]["reason"] == "it has not been started"


def test_table_of_the_front_and_of_fits(reported: Path) -> None:
    rows = [row for row in table(reported, "pareto.csv") if row["front_images"]]
    fastest = max(table(reported, "pareto.csv"), key=lambda row: float(row["images_s"]))
    assert [row["configuration"] for row in rows if row["front_images"] == "1"] == [fastest["configuration"]]
    fits = table(reported, "fits.csv")
    law = next(row for row in fits if row["loss_in"] == "number of experts" and row["form"] == "a x^-b")
    assert (float(law["b"]), law["supported"], law["sizes"]) == (pytest.approx(0.1, abs=1e-3), "True", "5")
    assert float(law["b_low"]) < 0.1 < float(law["b_high"])
    work = next(row for row in fits if row["loss_in"] == "FLOPs of training")
    assert (work["b"], work["supported"]) == ("", "False")
    assert "too few sizes (1)" in work["warnings"]


def test_formula_of_the_synthetic_runs() -> None:
    assert loss_of(trial(moe(8, 0.5))) == pytest.approx(8**-0.1 + 0.08 * 0.75)
    assert top1_of(1.0) == 0.6
    assert 0.0 in FACTORS


def test_labels() -> None:
    assert label({EXPERTS: 8, CAPACITY: 0.0, PRIORITY: False}) == "E=8 dropless no BPR"
    assert label({CAPACITY: -1.5, "model.moe.router": "cosine"}) == "f≤1.5 cosine"
    assert label({"model.moe": None, "optim.base_lr": 0.001}) == "dense base_lr=0.001"
