"""Looks of lines: colour, marker, dashes and width.

A style is a number that stands for one name on the whole page. COLOURS, and those of a dark page in
page.html.jinja, can be told apart without red, green or blue cones (see test_study_looks.py).
Markers differ too: colour and marker together repeat after 40 styles.
"""

from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple

import pandas as pd

INK, QUIET, GRID, PAPER = "#1b1e23", "#5b6270", "#dde0e5", "#ffffff"
COLOURS = ("#0539ff", "#ed5002", "#9d00ab", "#00355f", "#b36e90", "#630a02", "#8f83f7", "#5e5654")
MARKERS, HOLLOW = "osD^vPX*<>", "os^D"  # the hollow ones are of published values
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
VARIABLES = {INK: "--ink", QUIET: "--quiet", GRID: "--grid", PAPER: "--paper"}
VARIABLES |= {colour: f"--c{i}" for i, colour in enumerate(COLOURS)}
CURVE_WIDTH, WIDER = 1.3, 1.6  # points; of a curve, and what it is wider than the one that covers it
MOST_COVERED = 3  # curves of which each is visible by its width; markers show further ones
MARKED_EVERY = 10  # points of a curve


class Line(NamedTuple):
    """Points of one kind: columns x and y, and their standard deviations sd and x_sd where they are known.

    `kind` is joined, loose, level (one value for every x), curve, law or published.
    """

    label: str
    points: pd.DataFrame
    style: int = 0
    kind: str = "joined"
    variant: int = 0  # of two lines of one style the second has another dash and a hollow marker
    covered: int = 0  # number of curves that lie upon this one


def styles(first: Iterable[str], further: Iterable[str]) -> dict[str, int]:
    """A style for each name; further names get no colour of the first ones while others are left."""
    found = {name: i for i, name in enumerate(dict.fromkeys(first))}
    taken = set(range(len(found))) if len(found) < len(COLOURS) else set()
    free = (i for i in count(len(found)) if i % len(COLOURS) not in taken)
    return found | {name: next(free) for name in dict.fromkeys(further) if name not in found}


def look(line: Line) -> dict[str, Any]:
    """The look of a line, as arguments of matplotlib's Line2D."""
    colour, marker = COLOURS[line.style % len(COLOURS)], MARKERS[line.style % len(MARKERS)]
    if line.kind == "level":
        return {"color": colour, "marker": marker, "linestyle": (0, (5, 2)), "linewidth": 1.2}
    if line.kind == "law":
        return {"color": colour, "linewidth": CURVE_WIDTH, "linestyle": "-"}
    if line.kind == "curve":
        width = CURVE_WIDTH + WIDER * min(line.covered, MOST_COVERED)
        every = (3 * line.style % MARKED_EVERY, MARKED_EVERY) if len(line.points) > MARKED_EVERY else None
        dashes = DASHES[line.style % len(DASHES)]
        return {
            "color": colour,
            "linewidth": width,
            "linestyle": dashes,
            "marker": marker,
            "markersize": 4,
        } | {"markevery": every}
    if line.kind == "loose":
        return {"color": colour, "marker": marker, "linestyle": "none"}
    hollow = {"markerfacecolor": PAPER, "markeredgewidth": 1.3, "markersize": 6}
    if line.kind == "published":
        marker = HOLLOW[line.style % len(HOLLOW)]
        return {"color": QUIET, "linestyle": DASHES[1 + line.style % 3], "marker": marker, **hollow}
    dashes = DASHES[(line.style // len(COLOURS) + line.variant) % len(DASHES)]
    return {"color": colour, "marker": marker, "linestyle": dashes} | (hollow if line.variant else {})
