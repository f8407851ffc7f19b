"""Ticks of one axis never have the same text: of numbers in any range, and in the charts of reports."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launcher.cli.program import main
from launcher.study.drawing.ticks import (
    AXIS_LETTERS,
    UNITS,
    LogTicks,
    set_ticks,
    short,
    tick_texts,
    with_room,
)
from tests.launcher.study.drawn_page import figures
from tests.launcher.study.study_runs import moe, trial, write_all


def value_of(text: str) -> float:
    """The number that a tick's text means."""
    for power, unit in UNITS:
        if text.endswith(unit):
            return float(text[:-1]) * 10.0**power
    return float(text)


def assert_told_apart(ticks: Sequence[float]) -> None:
    """Different texts, each nearer to its tick than a fiftieth of the gap."""
    texts = tick_texts(ticks)
    assert len(set(texts)) == len(set(ticks)), (ticks, texts)
    gap = min((high - low for low, high in pairwise(sorted(set(ticks)))), default=0.0)
    for tick, text in zip(ticks, texts, strict=True):
        assert value_of(text) == pytest.approx(tick, rel=1e-6 if not gap else 1e-15, abs=gap / 50)


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        (
            [2.006, 2.0065, 2.007, 2.0075],
            ["2.0060", "2.0065", "2.0070", "2.0075"],
        ),  # once 2.006, 2.006, 2.007
        ([0, 5e5, 1e6, 1.5e6], ["0", "0.5M", "1.0M", "1.5M"]),
        ([-3, -2.5, -2], ["-3.0", "-2.5", "-2.0"]),
        ([1e-5, 2e-5], ["1e-5", "2e-5"]),
        ([1e22, 2e22], ["1e22", "2e22"]),
        ([1e9, 1e9 + 1], ["1.000000000G", "1.000000001G"]),
        ([1, 8, 1024], ["1", "8", "1024"]),
        ([0.001, 0.1, 10, 1e5], ["0.001", "0.1", "10", "100k"]),
        ([-1e-17, 1, 2], ["0", "1", "2"]),
        ([7.0], ["7"]),
        ([0.0], ["0"]),
        ([5e-324, 1e-323], ["5e-324", "10e-324"]),
        ([], []),
    ],
)
def test_texts_by_hand(ticks: list[float], texts: list[str]) -> None:
    assert tick_texts(ticks) == texts


def test_numbers_with_units() -> None:
    # 9999.7 has no unit and must not become 1e+04
    values = (9999.7, 65_812_345, 0.00051, 1500, 0, -2e12, 3e18)
    assert [short(value) for value in values] == ["10000", "65.81M", "0.00051", "1500", "0", "-2T", "3e18"]


def test_linear_axes_of_any_range() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        middle = draw.choice([-1, 0, 1, 1]) * 10 ** draw.uniform(-12, 14)
        half = 10 ** draw.uniform(-12, 14)
        if half > 1e-12 * abs(middle):
            assert_told_apart(
                sorted({float(x) for x in MaxNLocator(5).tick_values(middle - half, middle + half)})
            )


def test_logarithmic_axes_of_any_range() -> None:
    draw = random.Random(1)
    for _ in range(1000):
        low = 10 ** draw.uniform(-25, 15)
        high = low * 10 ** draw.choice([draw.uniform(1e-6, 1), draw.uniform(1, 20)])
        ticks = [float(x) for x in LogTicks(5).tick_values(low, high) if low <= x <= high]
        assert_told_apart(ticks)
        assert len(ticks) <= 6
        assert len(ticks) >= 2 or high / low < 8


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(
    ("low", "high"),
    [(2.3, 2.3000007), (1e-9, 3e-9), (1e9, 1e9 + 7), (12_345_678, 12_345_999), (0.5, 5000), (1, 1.0001)],
)
def test_axes_have_different_texts_that_fit(scale: str, low: float, high: float) -> None:
    axes = Figure().subplots()
    axes.plot([low, high], [low, high])
    axes.set(xscale=scale, yscale=scale)
    set_ticks(axes, {})
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        locations = axis.get_majorticklocs()
        shown = [
            text
            for x, text in zip(locations, axis.get_major_formatter().format_ticks(locations), strict=True)
            if limits[0] <= x <= limits[1]
        ]
        assert len(set(shown)) == len(shown) >= 1
        if axis is axes.xaxis:
            assert len(shown) == 1 or sum(map(len, shown)) <= AXIS_LETTERS


def test_named_ticks_keep_the_ends_and_do_not_touch() -> None:
    named = {float(x): f"{x}" for x in (1, 2, 3, 50, 51, 100)}
    # 42 letters over 99 units: a letter is 2.4 units; `50` and `51`, and 1, 2 and 3 touch
    assert list(with_room(named, (1, 100), 42, is_log=False)) == [1, 51, 100]
    assert list(with_room({1.0: "1", 8.0: "8", 64.0: "64"}, (1, 64), 42, is_log=True)) == [1, 8, 64]


def write_close_losses(root: Path, start: float, step: float) -> Path:
    """A study whose losses are a number plus a few steps."""
    trials = [trial(moe(e, f), seed) for e in (4, 8) for f in (0.5, 1.25) for seed in (0, 1)]
    write_all(root, trials)
    for i, each in enumerate(trials):
        for path in [
            root / "cells" / each.name / "summary.json",
            *(root / "cells" / each.name).glob("eval/*/*.json"),
        ]:
            record = json.loads(path.read_text())
            for row in [record, *record.get("rows", [])]:
                row["loss"] = start + step * (i % 5) + step * row.get("capacity_factor", 0.0) / 3
            path.write_text(json.dumps(record))
    return root


@pytest.mark.long
@pytest.mark.parametrize(("start", "step"), [(2.006, 0.0004), (-7.0, 1e-7)])
def test_ticks_of_the_charts_of_a_report(tmp_path: Path, start: float, step: float) -> None:
    root = write_close_losses(tmp_path / "study", start, step)
    assert main(["study", "report", str(root)]) == 0
    seen = 0
    for figure in figures(root / "report" / "index.html"):
        for texts in figure.axes():
            assert len(set(texts)) == len(texts), (figure.name, texts)
            seen += len(texts) > 1
    assert seen > 20


def test_ticks_of_a_large_report(reported: Path) -> None:
    for figure in figures(reported / "report" / "index.html"):
        assert len(figure.axes()) >= 2
        assert all(len(set(texts)) == len(texts) for texts in figure.axes()), figure.name
