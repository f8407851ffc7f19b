"""A verdict needs two seeds: with one, the page gives the difference and says that it may be chance."""

import re
from pathlib import Path

import pandas as pd
import pytest

from launcher.cli.program import main
from launcher.study.grid.trials import Trial
from launcher.study.report.data import LOSS, TOP1, Spread
from launcher.study.report.header import notices
from launcher.study.report.report import read
from launcher.study.report.summary import summary
from launcher.study.report.verdict import CHANCE, Change, between
from tests.launcher.study.drawn_page import figures
from tests.launcher.study.study_runs import moe, trial, write_all

VERDICTS = ("beyond the spread", "within the spread", "judged", "times it", "spreads behind", "significant")
ERROR_BARS = re.compile(r'id="[\w-]+-LineCollection_\d+"')


def reported_page(root: Path, trials: list[Trial]) -> Path:
    write_all(root, trials)
    assert main(["study", "report", str(root)]) == 0
    return root / "report" / "index.html"


def text_of(page: Path) -> str:
    text = re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page.read_text(), flags=re.S)
    return " ".join(text.split())


def differences(*values: tuple[int, float]) -> pd.Series:
    return pd.Series(
        [value for _, value in values], index=pd.Index([seed for seed, _ in values], name="seed")
    )


@pytest.mark.long
def test_one_seed_gives_numbers_and_no_verdict(tmp_path: Path) -> None:
    axes = [moe(e, f) for e in (4, 8) for f in (0.5, 1.25)] + [moe(8, priority=False), {"model.moe": None}]
    page = reported_page(tmp_path / "s", [trial(each) for each in axes])
    text = text_of(page)
    assert [word for word in VERDICTS if word in text] == []
    assert text.count("±") == 1  # where it is explained
    # 90 - 30 x loss: experts from 4 to 8 gain 30 x (4^-0.1 - 8^-0.1) in each of two pairs
    gain = 30 * (4**-0.1 - 8**-0.1)
    assert f"{gain:+.2f} points on average ({gain:+.2f} to {gain:+.2f}), over 2 pairs" in text
    assert text.count(CHANCE) >= 6  # best, dense, three options, capacity and priority at inference
    assert [figure.name for figure in figures(page) if ERROR_BARS.search(figure.svg)] == []
    assert "Every configuration has one seed" in text
    assert "To add seeds: seeds: [0, 1] in the study" in text


def test_several_seeds_give_a_verdict_and_bars(reported: Path) -> None:
    page = reported / "report" / "index.html"
    text = text_of(page)
    assert "beyond the spread of the pairs" in text
    assert CHANCE not in text
    assert "Every configuration has one seed" not in text
    assert any(ERROR_BARS.search(figure.svg) for figure in figures(page))


def test_a_configuration_of_one_seed_beside_others_is_named(tmp_path: Path) -> None:
    trials = [trial(moe(4), 0), trial(moe(4), 1), trial(moe(8), 0)]
    data = read(write_all(tmp_path / "s", trials))
    text = " ".join(summary(data))
    assert "1 of 2 configurations has one seed" in notices(data)[0]
    assert f"behind, one of both with {CHANCE}" in text
    assert f"over 1 pair of trials that differ in nothing else: {CHANCE}" in text


@pytest.mark.parametrize(
    ("values", "text", "verdict"),
    [
        ([(0, 2.0)], "+2.00 points", CHANCE),
        ([(0, 1.0), (0, 2.0)], "+1.50 points on average (+1.00 to +2.00)", CHANCE),
        ([(0, 1.0), (1, 2.0)], "+1.50 ± 0.71 points", "beyond the spread of the seeds (2.1 times it, n=2)"),
        ([(0, 1.0), (1, -1.0)], "+0.00 ± 1.41 points", "within the spread of the seeds"),
        (
            [(0, 1.0), (1, 1.0)],
            "+1.00 ± 0.00 points",
            "beyond the spread of the seeds (more than 99 times it, n=2)",
        ),
    ],
)
def test_changes_by_hand(values: list[tuple[int, float]], text: str, verdict: str) -> None:
    change = Change.of(differences(*values))
    assert (change.text(TOP1), change.verdict("seeds")) == (text, verdict)


def test_two_configurations_by_hand() -> None:
    one, two = Spread(0.5, float("nan"), 1), Spread(0.4, 0.03, 2)
    assert between(one, one, LOSS) == f"0.0000 of loss behind, each with {CHANCE}"
    assert between(one, two, LOSS) == f"0.1000 of loss behind, one of both with {CHANCE}"
    # sqrt(0.03^2 + 0.04^2) = 0.05, and 0.2 is four of these
    assert between(Spread(0.6, 0.04, 3), two, LOSS) == "4.0 spreads behind"
    assert between(Spread(0.41, 0.04, 3), two, LOSS) == "a difference within the spread of the seeds"
