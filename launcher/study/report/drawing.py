"""Lines with error bars, drawn by matplotlib: as SVG that takes its colours from the page, and as PNG.

A figure is 4 inches wide with letters of 8.5 to 9 points, so that it can be read on a telephone too. Colours
can be told apart by the colour-blind, and markers differ as colours do.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

WIDTH_IN, HEIGHT_IN, LEGEND_ROW_IN, PNG_DPI = 4.0, 2.75, 0.185, 160
PANEL_IN = 1.25  # height of one of many axes
INK, QUIET, GRID, PAPER = "#1b1e23", "#5b6270", "#dde0e5", "#ffffff"
# of Okabe and Ito's palette, the light ones darkened to a contrast of 3 on white
COLOURS = ("#0072b2", "#c65000", "#008462", "#b0559b", "#9a6b00", "#2b8cc4", "#7a3e9d", "#4d4d4d")
MARKERS, HOLLOW = "osD^vPX*<>", "os^D"  # the hollow ones are of published values
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


class Line(NamedTuple):
    """Points of one kind: columns x and y, and their standard deviations sd and x_sd where they are known.

    `kind` is joined, loose, level (one value for every x), curve, law or published.
    """

    label: str
    points: pd.DataFrame
    style: int = 0
    kind: str = "joined"


class Scale(NamedTuple):
    """Labels and scales of axes; `ticks` are positions on x with their texts, instead of round ones."""

    x: str
    y: str
    ticks: Mapping[float, str] = {}
    is_log_x: bool = False
    is_log_y: bool = False
    is_dodged: bool = False  # set points of one x side by side


class Chart(NamedTuple):
    """A chart of the report."""

    name: str  # of its files and its ids
    title: str
    caption: str
    svg: Markup
    png: bytes
    table: str  # the CSV file that has its values


def mean_points(
    x: Iterable[float], spreads: pd.DataFrame, x_sd: Iterable[float] | None = None
) -> pd.DataFrame:
    """The points of a line at `x`, one for each row of `spreads`, which has the columns mean and std."""
    points = pd.DataFrame({"x": list(x), "y": spreads["mean"].to_list(), "sd": spreads["std"].to_list()})
    return points if x_sd is None else points.assign(x_sd=list(x_sd))


def chart(
    name: str,
    title: str,
    caption: str,
    lines: Sequence[Line],
    scale: Scale,
    table: str = "cells.csv",
    front: pd.DataFrame | None = None,
) -> Chart:
    """Draw lines on one set of axes, with a legend below, and the points of a front as a numbered line."""
    lines = [line for line in lines if len(line.points)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        _set_legend(figure, lines, HEIGHT_IN)
        axes = figure.subplots()
        _set_axes(axes, scale)
        x = np.concatenate([line.points.x for line in lines if line.kind != "level"] or [[0.0]])
        step = 0.011 * np.ptp(x) if scale.is_dodged else 0.0
        for i, line in enumerate(lines):
            _plot(axes, line, step * (i - (len(lines) - 1) / 2))
        if front is not None:
            _plot_front(axes, front)
        return _saved(figure, name, title, caption, table)


def panels(
    name: str, title: str, caption: str, lines: Mapping[str, Sequence[Line]], scale: Scale, table: str
) -> Chart:
    """Draw small axes in two columns that share their scales, one for each key of `lines`, and one legend."""
    columns = 2 if len(lines) > 1 else 1
    rows = -(-len(lines) // columns)
    height = HEIGHT_IN - 0.4 if columns == 1 else 0.35 + rows * (PANEL_IN + (0.45 if rows == 1 else 0.0))
    labels = {line.label: line for each in lines.values() for line in each}
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        _set_legend(figure, sorted(labels.values(), key=lambda line: line.style), height)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(lines) :]:
            axes.set_axis_off()
        for i, (axes, (panel, each)) in enumerate(zip(grid.flat, lines.items(), strict=False)):
            is_last = i + columns >= len(lines)
            _set_axes(axes, scale._replace(x=scale.x if is_last else "", y=panel))
            axes.tick_params(labelbottom=is_last)
            for line in each:
                _plot(axes, line)
        return _saved(figure, name, title, caption, table)


def short(value: float) -> str:
    """A number for an axis: 1.5k, 20M, 3.2T."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power * (10 if power == 3 else 1):
            return f"{value / 10**power:.4g}{unit}"
    return f"{value:.4g}"


def for_page(svg: str, name: str, described: str) -> Markup:
    """An SVG file as an element: ids of its own, colours from the page, its width that of its column.

    Args:
        svg: as matplotlib writes it.
        name: with which its ids begin.
        described: for readers who cannot see it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[\d.]+pt"', r"\1", svg)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")  # the page's own is narrower, and fits
    for colour, variable in NAMES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(described)}"', 1)
    return Markup(re.sub(r"\n\s*", "\n", svg).strip())


def _set_legend(figure: Figure, lines: Sequence[Line], height_in: float) -> None:
    """The names of the lines below the axes, for which the figure becomes higher."""
    longest = max((len(line.label) for line in lines), default=0)
    columns = 3 if longest <= 10 else 2 if longest <= 21 else 1
    figure.set_size_inches(WIDTH_IN, height_in + -(-len(lines) // columns) * LEGEND_ROW_IN)
    handles = [Line2D([], [], **_look(line)) for line in lines]
    figure.legend(handles, [line.label for line in lines], loc="outside lower left", ncols=columns)


def _set_axes(axes: Axes, scale: Scale) -> None:
    """Labels, ticks and scales; the name of y is above its axis, where it can be read."""
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
        texts = list(scale.ticks.items())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: next((t for x, t in texts if np.isclose(x, value, 1e-9)), ""))
        )


class _FewTicks(MaxNLocator):
    """At most five round positions on a logarithmic axis, whether it spans a tenth or ten powers of ten."""

    def __init__(self) -> None:
        super().__init__(nbins=5, steps=[1, 2, 2.5, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> Any:
        if vmin <= 0 or vmax / vmin < 8:
            return [value for value in super().tick_values(vmin, vmax) if value > 0]
        decade = [10.0**power * factor for power in range(-12, 25) for factor in (1, 2, 5)]
        inside = [value for value in decade if vmin <= value <= vmax]
        return inside[:: -(-len(inside) // 6)]


def _plot(axes: Axes, line: Line, dodge: float = 0.0) -> None:
    """Add a line with its error bars."""
    look, points = _look(line), line.points.sort_values("x", kind="stable")
    if line.kind == "level":
        y, sd = points.y.iloc[0], points.sd.iloc[0]
        axes.axhline(y, **look)
        if sd > 0:
            axes.axhspan(y - sd, y + sd, color=QUIET, alpha=0.15, linewidth=0)
        return
    x, y = points.x + dodge, points.y
    bars = {f"{axis}err": points[sd] for axis, sd in (("y", "sd"), ("x", "x_sd")) if sd in points}
    bars = {name: sizes for name, sizes in bars.items() if (sizes > 0).any()}
    if bars:
        thin: dict[str, Any] = {"elinewidth": 1, "capsize": 2.5, "alpha": 0.75}
        axes.errorbar(x, y, fmt="none", ecolor=look["color"], **thin, **bars)
    axes.plot(x, y, **look)


def _plot_front(axes: Axes, front: pd.DataFrame) -> None:
    """The front as steps, and the number of each of its points where there is room for it."""
    line = front.sort_values("x", kind="stable")
    rises = line.y.iloc[-1] >= line.y.iloc[0]
    axes.plot(
        line.x, line.y, color=INK, linewidth=1, drawstyle=f"steps-{'post' if rises else 'pre'}", zorder=1.5
    )
    ring: dict[str, Any] = {
        "markersize": 8.5,
        "markerfacecolor": "none",
        "markeredgecolor": INK,
        "markeredgewidth": 1.1,
    }
    axes.plot(line.x, line.y, "o", **ring)
    side: Any = {"ha": "right", "xytext": (-4, 4)} if rises else {"ha": "left", "xytext": (4, 4)}
    shown: list[Any] = []
    for i, xy in enumerate(front[["x", "y"]].to_numpy(), 1):
        place = axes.transData.transform(xy)
        if all(np.abs(place - other).sum() > 16 for other in shown):
            shown.append(place)
            text = axes.annotate(f"{i}", xy, textcoords="offset points", fontsize=8.5, **side)
            text.set_bbox({"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 0.4})


def _look(line: Line) -> dict[str, Any]:
    colour, marker = COLOURS[line.style % len(COLOURS)], MARKERS[line.style % len(MARKERS)]
    if line.kind == "level":
        return {"color": INK, "linestyle": (0, (5, 2)), "linewidth": 1.2}
    if line.kind in ("curve", "law"):
        dashes = DASHES[line.style % 4 * (line.kind == "curve")]
        return {"color": colour, "linewidth": 1.3, "linestyle": dashes}
    if line.kind == "loose":
        return {"color": colour, "marker": marker, "linestyle": "none"}
    if line.kind == "published":
        face = {"markerfacecolor": PAPER, "markeredgecolor": QUIET, "markeredgewidth": 1.3, "markersize": 6}
        marker = HOLLOW[line.style % len(HOLLOW)]
        return {"color": QUIET, "linestyle": DASHES[1 + line.style % 3], "marker": marker, **face}
    return {"color": colour, "marker": marker, "linestyle": DASHES[line.style // len(COLOURS) % 4]}


def _saved(figure: Figure, name: str, title: str, caption: str, table: str) -> Chart:
    """The figure as SVG for the page, and with its title as PNG."""
    vector, raster = io.StringIO(), io.BytesIO()
    figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    figure.set_size_inches(WIDTH_IN, figure.get_size_inches()[1] + 0.3)
    figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
    figure.savefig(raster, format="png", dpi=PNG_DPI)
    svg = for_page(vector.getvalue(), name, f"{title}. {caption}")
    return Chart(name=name, title=title, caption=caption, svg=svg, png=raster.getvalue(), table=table)
