"""Lines with error bars, drawn by matplotlib: as SVG that takes its colours from the page, and as PNG.

A figure is 4 inches wide with letters of 8.5 to 9 points, so that it can be read on a telephone too. Colours
can be told apart by the colour-blind, and no line is told apart by its colour alone: markers differ too.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

WIDTH_IN, HEIGHT_IN, LEGEND_ROW_IN, PNG_DPI = 4.0, 2.75, 0.185, 160
INK, QUIET, GRID, PAPER = "#1b1e23", "#5b6270", "#dde0e5", "#ffffff"
# of Okabe and Ito's palette, the light ones darkened to a contrast of 3 on white
COLOURS = ("#0072b2", "#c65000", "#008462", "#b0559b", "#9a6b00", "#2b8cc4", "#7a3e9d", "#4d4d4d")
MARKERS = "osD^vPX*<>"
HOLLOW = "os^D"  # of published figures
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
NAMES = {INK: "--ink", QUIET: "--quiet", GRID: "--grid", PAPER: "--paper"}
NAMES |= {colour: f"--c{i}" for i, colour in enumerate(COLOURS)}
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "swin-moe study",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mean and its standard deviation, if that is known."""

    x: float
    y: float
    sd: float | None = None
    x_sd: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points of one kind; `kind` is joined, loose, level (one value for every x), curve, law or published."""

    label: str
    points: Sequence[Point]
    style: int = 0
    kind: str = "joined"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the axes say. `ticks` are places on x with their texts, none for the ordinary ones."""

    x: str
    y: str
    ticks: Mapping[float, str] = field(default_factory=dict)
    is_log_x: bool = False
    is_log_y: bool = False
    is_dodged: bool = False  # set points of one x side by side


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as two files."""

    svg: str  # for the page; its ids begin with the picture's name
    png: bytes


def styled() -> AbstractContextManager[None]:
    """The style of every chart, for as long as it is drawn."""
    return matplotlib.rc_context(STYLE)


def figure(legend: Sequence[str], height_in: float = HEIGHT_IN) -> tuple[Figure, int]:
    """An empty figure with room for its legend, and the legend's columns."""
    longest = max(map(len, legend), default=0)
    columns = 3 if longest <= 10 else 2 if longest <= 21 else 1
    rows = -(-len(legend) // columns)
    return Figure(figsize=(WIDTH_IN, height_in + rows * LEGEND_ROW_IN), layout="constrained"), columns


def draw(lines: Sequence[Line], scale: Scale) -> Figure:
    """One set of axes with lines, and a legend below."""
    lines = [line for line in lines if line.points]
    made, columns = figure([line.label for line in lines])
    axes = made.subplots()
    frame(axes, scale)
    xs = [point.x for line in lines for point in line.points if line.kind != "level"]
    step = 0.011 * (max(xs, default=1) - min(xs, default=0)) if scale.is_dodged else 0.0
    for i, line in enumerate(lines):
        plot(axes, line, step * (i - (len(lines) - 1) / 2))
    legend(made, lines, columns)
    return made


def frame(axes: Axes, scale: Scale) -> None:
    """Labels, ticks and scales; the name of y stands above its axis, where it can be read."""
    axes.set_xlabel(scale.x)
    axes.set_title(scale.y)
    axes.set(xscale="log" if scale.is_log_x else "linear", yscale="log" if scale.is_log_y else "linear")
    for axis, is_log in ((axes.xaxis, scale.is_log_x), (axes.yaxis, scale.is_log_y)):
        if is_log:
            axis.set_minor_locator(NullLocator())
            axis.set_major_locator(_FewTicks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if not scale.is_log_x:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if scale.ticks:
        axes.xaxis.set_major_locator(FixedLocator(list(scale.ticks)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(scale.ticks, value)))


class _FewTicks(MaxNLocator):
    """At most five round places on a logarithmic axis, whether it spans a tenth or ten powers of ten."""

    def __init__(self) -> None:
        super().__init__(nbins=5, steps=[1, 2, 2.5, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> Any:
        if vmin <= 0 or vmax / vmin < 8:
            return [value for value in super().tick_values(vmin, vmax) if value > 0]
        decade = [10.0**power * factor for power in range(-12, 25) for factor in (1, 2, 5)]
        inside = [value for value in decade if vmin <= value <= vmax]
        return inside[:: -(-len(inside) // 6)]


def _text(ticks: Mapping[float, str], value: float) -> str:
    return next((text for place, text in ticks.items() if abs(place - value) < 1e-9 * max(1, abs(value))), "")


def short(value: float) -> str:
    """A number for an axis: 1.5k, 20M, 3.2T."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power * (10 if power == 3 else 1):
            return f"{value / 10**power:.4g}{unit}"
    return f"{value:.4g}"


def plot(axes: Axes, line: Line, dodge: float = 0.0) -> None:
    """Add a line with its error bars."""
    if line.kind == "level":
        point = line.points[0]
        axes.axhline(point.y, **_look(line))
        if point.sd:
            axes.axhspan(point.y - point.sd, point.y + point.sd, color=QUIET, alpha=0.15, linewidth=0)
        return
    points = sorted(line.points, key=lambda point: point.x)
    x, y = [point.x + dodge for point in points], [point.y for point in points]
    if any(point.sd is not None or point.x_sd is not None for point in points):
        bars = {
            "yerr": [point.sd or 0.0 for point in points],
            "xerr": [point.x_sd or 0.0 for point in points],
        }
        bars = {name: sizes for name, sizes in bars.items() if any(sizes)}
        colour = _look(line)["color"]
        axes.errorbar(x, y, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.75, **bars)  # type: ignore[arg-type]
    axes.plot(x, y, **_look(line))


def _look(line: Line) -> dict[str, Any]:
    colour, marker = COLOURS[line.style % len(COLOURS)], MARKERS[line.style % len(MARKERS)]
    if line.kind == "level":
        return {"color": INK, "linestyle": (0, (5, 2)), "linewidth": 1.2}
    if line.kind in ("curve", "law"):
        return {
            "color": colour,
            "linewidth": 1.3,
            "linestyle": DASHES[line.style % 4 * (line.kind == "curve")],
        }
    if line.kind == "loose":
        return {"color": colour, "marker": marker, "linestyle": "none"}
    if line.kind == "published":
        face = {"markerfacecolor": PAPER, "markeredgecolor": QUIET, "markeredgewidth": 1.3, "markersize": 6}
        marker = HOLLOW[line.style % len(HOLLOW)]
        return {"color": QUIET, "linestyle": DASHES[1 + line.style % 3], "marker": marker, **face}
    dashes = DASHES[line.style // len(COLOURS) % 4]
    return {"color": colour, "marker": marker, "linestyle": dashes}


def legend(made: Figure, lines: Sequence[Line], columns: int) -> None:
    """What the lines are, below the axes."""
    handles = [Line2D([], [], **_look(line)) for line in lines]
    made.legend(handles, [line.label for line in lines], loc="outside lower left", ncols=columns)


def picture(made: Figure, name: str, title: str) -> Picture:
    """The figure as SVG for the page, and with its title as PNG."""
    vector, raster = io.StringIO(), io.BytesIO()
    made.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.set_size_inches(WIDTH_IN, made.get_size_inches()[1] + 0.3)
    made.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
    made.savefig(raster, format="png", dpi=PNG_DPI)
    return Picture(svg=for_page(vector.getvalue(), name), png=raster.getvalue())


def for_page(svg: str, name: str) -> str:
    """An SVG file as an element: ids of its own, colours from the page, its width that of its column."""
    svg = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>",
        "",
        svg[svg.index("<svg") :],
        flags=re.DOTALL,
    )
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", svg)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")  # the page's own is narrower, and fits
    for colour, variable in NAMES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()
