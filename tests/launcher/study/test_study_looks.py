"""Colours that the colour-blind tell apart, one for each name on a page, and points that hide no other."""

import re
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launcher.cli.program import main
from launcher.study.drawing.chart import BESIDE, Scale, chart, ranges
from launcher.study.drawing.looks import COLOURS, MARKERS, Line, styles
from launcher.study.drawing.side_by_side import STEP_PT, dodged, is_moved, side_by_side, uncovered
from tests.launcher.study.drawn_page import Look, figures
from tests.launcher.study.study_runs import moe, trial, write_all

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision",
# table 1, severity 1: what is seen without red, green or blue cones, of linear red, green, blue
SEEN_BY = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Ottosson 2020, "A perceptual color space for image processing": linear red, green, blue to Oklab
TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]
LEAST_DIFFERENCE = 0.1  # of Oklab, five times what can just be seen
LEAST_CONTRAST = 3.0  # WCAG 2.1, 1.4.11, of graphics


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def palettes() -> dict[str, tuple[list[str], str]]:
    """The colours and the paper of the light and of the dark page."""
    text = files("launcher.study.report").joinpath("page.html.jinja").read_text()
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    found = {}
    for name, part in (("light", light), ("dark", dark.split("box-sizing")[0])):
        colours = dict(re.findall(r"--(c\d|paper): (#[0-9a-f]{6})", part))
        found[name] = ([colours[f"c{i}"] for i in range(len(COLOURS))], colours["paper"])
    return found


def test_the_page_has_the_colours_of_the_pictures() -> None:
    assert tuple(palettes()["light"][0]) == COLOURS


@pytest.mark.parametrize("sight", SEEN_BY)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_colours_can_be_told_apart(page: str, sight: str) -> None:
    seen = [np.clip(np.array(SEEN_BY[sight]) @ linear(colour), 0, 1) for colour in palettes()[page][0]]
    places = [np.array(TO_OKLAB) @ np.cbrt(np.array(TO_CONES) @ each) for each in seen]
    assert min(np.linalg.norm(a - b) for a, b in combinations(places, 2)) >= LEAST_DIFFERENCE


@pytest.mark.parametrize("page", ["light", "dark"])
def test_colours_can_be_seen_on_their_page(page: str) -> None:
    colours, paper = palettes()[page]
    assert min(contrast(colour, paper) for colour in colours) >= LEAST_CONTRAST


def test_names_have_styles_of_their_own() -> None:
    found = styles(["a", "b", "c"], ["b", "x", "y"])
    assert found == {"a": 0, "b": 1, "c": 2, "x": 3, "y": 4}
    found = styles("abcde", map(str, range(4)))  # three colours are left for four families: markers differ
    assert [found[str(i)] % len(COLOURS) for i in range(4)] == [5, 6, 7, 5]
    many = styles(map(str, range(26)), ["x", "y"])
    looks = {(i % len(COLOURS), i % len(MARKERS)) for i in many.values()}
    assert len(looks) == len(many) == 28


def test_one_look_for_each_configuration_on_a_page(reported: Path) -> None:
    """Every name that stands in several legends has one colour, and one marker where it has one."""
    by_name: dict[str, set[Look]] = {}
    for figure in figures(reported / "report" / "index.html"):
        if figure.name.endswith("-layers"):  # smaller markers
            continue
        for name, look in figure.legend().items():
            by_name.setdefault(name, set()).add(look)
    ours = {name: looks for name, looks in by_name.items() if not name.startswith(("b = ", "published"))}
    assert {"E=8 f=0.5 BPR", "dense", "E=8 BPR"} <= set(ours)
    assert {name: len(looks) for name, looks in ours.items()} == dict.fromkeys(ours, 1)
    assert len({next(iter(looks)) for looks in ours.values()}) == len(ours)


def test_the_layers_have_the_same_colours(reported: Path) -> None:
    legends = {figure.name: figure.legend() for figure in figures(reported / "report" / "index.html")}
    for name, look in legends["balance-layers"].items():
        assert look.colour == legends["top1-inference-capacity-k1"][name].colour


def points(*places: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(places, columns=["x", "y"]).assign(sd=np.nan)


def test_equal_points_are_moved_apart_and_others_stay() -> None:
    lines = [
        Line("a", points((1, 1), (3, 3)), kind="loose"),
        Line("b", points((1, 1)), kind="loose"),
        Line("c", points((1, 1), (1, 1)), kind="loose"),
        Line("law", points((1, 1), (3, 3)), kind="law"),
    ]
    moved = side_by_side(lines)
    # four equal points in a row around their place: -1.5, -0.5, 0.5 and 1.5 steps
    at = [dx / STEP_PT for line in moved[:3] for dx in line.points.dx]
    assert at == pytest.approx([-1.5, 0, -0.5, 0.5, 1.5])
    assert not is_moved(moved[3:])
    assert not is_moved(side_by_side([lines[0]]))


@pytest.mark.parametrize(("is_log", "moves"), [(True, False), (False, True)])
def test_what_is_one_place_depends_on_the_scale(is_log: bool, moves: bool) -> None:
    lines = [Line("a", points((1, 1), (10_000, 2)), kind="loose"), Line("b", points((3, 1)), kind="loose")]
    assert is_moved(side_by_side(lines, is_log_x=is_log)) == moves


def test_many_equal_points_stay_near_their_place() -> None:
    moved = side_by_side(
        [Line(str(i), points((1, 1), (9, 9))[: 1 + (i == 0)], kind="loose") for i in range(23)]
    )
    every = pd.concat([line.points for line in moved])
    places = set(zip(every.dx, every.dy, strict=True))
    assert len(places) == 23  # and the other point shares (0, 0) with the middle of the rows
    assert every[["dx", "dy"]].abs().to_numpy().max() <= 3 * STEP_PT


def test_lines_of_common_positions_are_dodged() -> None:
    lines = [Line(name, points((1, 1), (2, 1))) for name in "abc"] + [Line("d", points((0, 1)), kind="level")]
    assert [line.points.dx.tolist() for line in dodged(lines)] == [
        [-STEP_PT, -STEP_PT],
        [0, 0],
        [STEP_PT, STEP_PT],
        [0],
    ]


def test_curves_upon_each_other_are_named_and_have_different_widths() -> None:
    same, other = points((1, 1), (2, 2)), points((1, 5), (2, 9))
    lines = [Line(name, same, kind="curve") for name in "ab"] + [Line("c", other, kind="curve")]
    drawn, names = uncovered({"layer": lines, "next": lines[1:]})
    assert [line.covered for line in drawn["layer"]] == [1, 0, 0]
    assert [line.covered for line in drawn["next"]] == [0, 0]
    assert names == [("a", "b")]


def test_a_chart_says_that_points_were_moved() -> None:
    apart = [Line("a", points((1, 1)), kind="loose"), Line("b", points((2, 2)), kind="loose")]
    equal = [apart[0], Line("b", points((1, 1)), kind="loose")]
    assert BESIDE in chart("n", "t", "c", equal, Scale("x", "y")).caption
    assert BESIDE not in chart("n", "t", "c", apart, Scale("x", "y")).caption


def test_numbers_of_a_front() -> None:
    assert [ranges(each) for each in ([1], [1, 2], [1, 3, 4, 5, 9])] == ["1", "1–2", "1, 3–5, 9"]


@pytest.mark.long
def test_every_number_of_a_front_is_on_the_chart(tmp_path: Path) -> None:
    """Equal points share a text: over FLOPs, a model that drops nothing is as good at 1.25 as dropless."""
    root = write_all(tmp_path / "s", [trial(moe(e), seed) for e in (4, 8) for seed in (0, 1)])
    assert main(["study", "report", str(root)]) == 0
    front = pd.read_csv(root / "report" / "pareto.csv").front_flops.dropna()
    svg = next(
        figure.svg for figure in figures(root / "report" / "index.html") if figure.name == "pareto-flops"
    )
    shown = set()
    for text in re.findall(r"<text [^>]*>([\d–, ]+)</text>", svg):
        for part in text.split(", "):
            first, _, last = part.partition("–")
            shown |= set(range(int(first), int(last or first) + 1))
    assert len(front) > 2
    assert set(front.astype(int)) <= shown
