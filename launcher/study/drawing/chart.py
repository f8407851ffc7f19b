"""Lines with error bars, drawn by matplotlib: as SVG that takes its colours from the page, and as PNG.

A figure is 4 inches wide with letters of 8.5 to 9 points, so that it can be read on a telephone too. looks.py
has the colours and markers, ticks.py the ticks, and side_by_side.py moves points that would cover each other.
"""

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from launcher.study.drawing.looks import GRID, INK, PAPER, QUIET, VARIABLES, Line, look
from launcher.study.drawing.side_by_side import SIZE_PT, dodged, is_moved, side_by_side, uncovered
from launcher.study.drawing.ticks import AXIS_LETTERS, set_ticks

WIDTH_IN, HEIGHT_IN, LEGEND_ROW_IN, PNG_DPI = 4.0, 2.75, 0.185, 160
PANEL_IN = 1.25  # height of one of many axes
LEAST_MARGIN = 0.05  # of the axes, beside the points
LABEL_PX = 16.0  # numbers of a front that are nearer to each other share one text
BESIDE = "Points at the same place are drawn side by side."
DODGED = "Points of one position on x are drawn side by side."
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
    lines = [line._replace(points=line.points.dropna(subset=["x", "y"])) for line in lines]
    lines = [line for line in lines if len(line.points)]
    if scale.is_dodged:
        lines = dodged(lines)
    else:
        lines = side_by_side(lines, is_log_x=scale.is_log_x, is_log_y=scale.is_log_y)
    if is_moved(lines):
        caption = f"{caption} {DODGED if scale.is_dodged else BESIDE}"
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        _set_legend(figure, lines, HEIGHT_IN)
        axes = figure.subplots()
        _set_axes(axes, scale)
        _set_limits(axes, lines)
        for line in lines:
            _plot(axes, line)
        if front is not None:
            _plot_front(axes, front.join(pd.concat([line.points for line in lines])[["dx", "dy"]]))
        set_ticks(axes, scale.ticks)
        return _saved(figure, name, title, caption, table)


def panels(
    name: str, title: str, caption: str, lines: Mapping[str, Sequence[Line]], scale: Scale, table: str
) -> Chart:
    """Draw small axes in two columns that share their scales, one for each key of `lines`, and one legend."""
    lines, same = uncovered(lines)
    caption = " ".join(
        [caption, *[f"{', '.join(names)} coincide: each is drawn upon the one before." for names in same]]
    )
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
                axes.plot(line.points.x, line.points.y, **look(line))
        for axes in grid.flat[: len(lines)]:
            set_ticks(axes, scale.ticks, AXIS_LETTERS / columns)
        return _saved(figure, name, title, caption, table)


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
    for colour, variable in VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(described)}"', 1)
    return Markup(re.sub(r"\n\s*", "\n", svg).strip())


def _set_legend(figure: Figure, lines: Sequence[Line], height_in: float) -> None:
    """The names of the lines below the axes, for which the figure becomes higher."""
    longest = max((len(line.label) for line in lines), default=0)
    columns = 3 if longest <= 10 else 2 if longest <= 21 else 1
    figure.set_size_inches(WIDTH_IN, height_in + -(-len(lines) // columns) * LEGEND_ROW_IN)
    handles = [Line2D([], [], **look(line._replace(covered=0)) | {"markevery": None}) for line in lines]
    figure.legend(handles, [line.label for line in lines], loc="outside lower left", ncols=columns)


def _set_axes(axes: Axes, scale: Scale) -> None:
    """Labels, ticks and scales; the name of y is above its axis, where it can be read."""
    axes.set_xlabel(scale.x)
    axes.set_title(scale.y)
    axes.set(xscale="log" if scale.is_log_x else "linear", yscale="log" if scale.is_log_y else "linear")


def _set_limits(axes: Axes, lines: Sequence[Line]) -> None:
    """Limits that hold all points with their bars, which matplotlib does not see where they are moved."""
    for line in lines:
        points = line.points if line.kind != "level" else line.points.assign(x=np.nan)
        for sign in (-1, 1):
            ends = [
                points[axis] + sign * (points[sd].fillna(0) if sd in points else 0)
                for axis, sd in (("x", "x_sd"), ("y", "sd"))
            ]
            axes.update_datalim(np.stack(ends, axis=1), updatex=line.kind != "level")
    moves = (
        pd.concat([line.points[["dx", "dy"]] for line in lines]).abs().max() / SIZE_PT if lines else (0, 0)
    )
    axes.margins(*(LEAST_MARGIN + np.asarray(moves)))
    axes.autoscale_view()


def _plot(axes: Axes, line: Line) -> None:
    """Add a line with its error bars, each of its points moved by dx and dy."""
    shown, points = look(line), line.points.sort_values("x", kind="stable")
    if line.kind == "level":
        y, sd = points.y.iloc[0], points.sd.iloc[0]
        axes.axhline(y, 0.02, 0.98, **shown)
        if sd > 0:
            axes.axhspan(y - sd, y + sd, color=shown["color"], alpha=0.12, linewidth=0)
        return
    moves = points.groupby(["dx", "dy"], sort=False)
    if "marker" not in shown or shown["linestyle"] != "none":
        (dx, dy), _ = next(iter(moves)) if moves.ngroups == 1 else ((0.0, 0.0), None)
        axes.plot(points.x, points.y, transform=_moved(axes, dx, dy), **shown | {"marker": ""})
    if "marker" in shown:
        for (dx, dy), some in moves:
            _plot_points(axes, some, _moved(axes, dx, dy), shown | {"linestyle": "none"})


def _plot_points(axes: Axes, points: pd.DataFrame, transform: Transform, shown: dict[str, Any]) -> None:
    """Add markers and their error bars."""
    bars = {f"{axis}err": points[sd] for axis, sd in (("y", "sd"), ("x", "x_sd")) if sd in points}
    bars = {name: sizes for name, sizes in bars.items() if (sizes > 0).any()}
    if bars:
        thin: dict[str, Any] = {"elinewidth": 1, "capsize": 2.5, "alpha": 0.75, "transform": transform}
        axes.errorbar(points.x, points.y, fmt="none", ecolor=shown["color"], **thin, **bars)
    axes.plot(points.x, points.y, transform=transform, **shown)


def _moved(axes: Axes, dx: float, dy: float) -> Transform:
    """The places of data, moved by so many points."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(dx / 72, dy / 72, figure.dpi_scale_trans)


def _plot_front(axes: Axes, front: pd.DataFrame) -> None:
    """The front as steps, a ring around each of its points, and their numbers; near ones share a text."""
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
    for (dx, dy), some in front.groupby(["dx", "dy"]):
        axes.plot(some.x, some.y, "o", transform=_moved(axes, dx, dy), **ring)
    side: Any = {"ha": "right", "xytext": (-4, 4)} if rises else {"ha": "left", "xytext": (4, 4)}
    for first, numbers in _near(axes, front):
        x, y, dx, dy = first
        place = {**side, "xytext": (side["xytext"][0] + dx, side["xytext"][1] + dy)}
        text = axes.annotate(ranges(numbers), (x, y), textcoords="offset points", fontsize=8.5, **place)
        text.set_bbox({"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 0.4})


def _near(axes: Axes, front: pd.DataFrame) -> list[tuple[Sequence[float], list[int]]]:
    """The points of a front whose numbers share a text: the first one's x, y, dx and dy, and all numbers."""
    groups: list[tuple[Sequence[float], list[int]]] = []
    places: list[Any] = []
    for number, point in enumerate(front[["x", "y", "dx", "dy"]].to_numpy(float), 1):
        place = axes.transData.transform(point[:2])
        near = [i for i, other in enumerate(places) if np.abs(place - other).sum() <= LABEL_PX]
        if near:
            groups[near[0]][1].append(number)
        else:
            places.append(place)
            groups.append((point.tolist(), [number]))
    return groups


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in rising order as text: `1, 3–5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _saved(figure: Figure, name: str, title: str, caption: str, table: str) -> Chart:
    """The figure as SVG for the page, and with its title as PNG."""
    vector, raster = io.StringIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # a box in the PNG; the page has its own font
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.set_size_inches(WIDTH_IN, figure.get_size_inches()[1] + 0.3)
        figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
        figure.savefig(raster, format="png", dpi=PNG_DPI)
    svg = for_page(vector.getvalue(), name, f"{title}. {caption}")
    return Chart(name=name, title=title, caption=caption, svg=svg, png=raster.getvalue(), table=table)
