"""What the MoE layers did while they learnt: dropped share and balance of every layer, over the steps."""

from collections.abc import Mapping, Sequence

import numpy as np

from launcher.study.report.charts import section
from launcher.study.report.drawing import (
    HEIGHT_IN,
    Line,
    Point,
    Scale,
    figure,
    frame,
    legend,
    picture,
    plot,
    styled,
)
from launcher.study.report.findings import MOST_LINES, Chart, Findings, Section, seeds_said
from launcher.study.report.groups import Group
from launcher.study.report.results import Result

BINS = 40  # of the steps; a point is the mean of its steps
MOST_LAYERS = 12  # of one chart
PANEL_IN = 1.25
LABELS = {  # file, title, what it is, unit
    "dropped_fraction": (
        "dropped-layers",
        "Dropped share by layer, %",
        "share of the choices that found no slot, %",
        100.0,
    ),
    "load_max_over_mean": (
        "balance-layers",
        "Load by layer, largest over mean",
        "largest load of an expert over the mean (1 is even)",
        1.0,
    ),
}
Curve = list[tuple[float, float]]  # step, value


def binned(points: Sequence[tuple[int, float]], last_step: int) -> Curve:
    """Means over BINS equal spans of the steps 1 to last_step: (middle of the span's steps, mean)."""
    width = max(1.0, last_step / BINS)
    found: dict[int, list[tuple[int, float]]] = {}
    for step, value in points:
        found.setdefault(int((step - 1) / width), []).append((step, value))
    return [tuple(np.mean(inside, axis=0).tolist()) for _, inside in sorted(found.items())]


def mean_curve(results: Sequence[Result], figure_name: str, layer: str) -> Curve:
    """The mean over seeds of a layer's curve, where all of them have it."""
    raw = [result.curves[figure_name][layer] for result in results if layer in result.curves[figure_name]]
    last_step = max((points[-1][0] for points in raw), default=1)
    curves = [binned(points, last_step) for points in raw]
    return [tuple(np.mean(points, axis=0).tolist()) for points in zip(*curves, strict=False)]


def all_curves(groups: Sequence[Group], figure_name: str) -> dict[str, dict[str, Curve]]:
    """layer -> configuration -> mean curve."""
    found: dict[str, dict[str, Curve]] = {}
    for group in groups:
        results = list(group.results.values())
        for layer in results[0].curves.get(figure_name, {}):
            found.setdefault(layer, {})[group.label] = mean_curve(results, figure_name, layer)
    return found


def layer_chart(findings: Findings, figure_name: str) -> Chart | str:
    """A panel a layer, a line a configuration."""
    name, title, label, unit = LABELS[figure_name]
    curves = all_curves(findings.experts, figure_name)
    if not curves:
        return f"{title}: no cell recorded it."
    labels = chosen(findings.experts)
    layers = spread_out(list(curves), MOST_LAYERS)
    lines = {
        layer: [
            Line(
                label=each,
                style=i,
                kind="curve",
                points=[Point(x=x, y=unit * y) for x, y in curves[layer][each]],
            )
            for i, each in enumerate(labels)
            if curves[layer].get(each)
        ]
        for layer in layers
    }
    with styled():
        drawn = panels(lines, labels, name, title)
    caption = (
        f"{label[0].upper()}{label[1:]}, in training; a panel a layer, a point the mean of 1/{BINS} of the "
        f"steps over the seeds ({seeds_said(findings.experts).split(',')[0]})."
    )
    if len(labels) < len(findings.experts):
        caption += f" {len(labels)} of {len(findings.experts)} configurations are drawn; the CSV has all."
    if len(layers) < len(curves):
        caption += f" {len(layers)} of {len(curves)} layers are drawn."
    return Chart(name=name, title=title, caption=caption, picture=drawn, table="layers.csv")


def chosen(groups: Sequence[Group]) -> list[str]:
    """The configurations to draw, at most MOST_LINES, evenly from the first to the last."""
    return spread_out([group.label for group in groups], MOST_LINES)


def spread_out(items: list[str], most: int) -> list[str]:
    """At most so many, evenly from the first to the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def panels(lines: Mapping[str, Sequence[Line]], labels: Sequence[str], name: str, title: str):  # type: ignore[no-untyped-def]
    """Small axes in two columns that share their scales, and one legend."""
    columns = 2 if len(lines) > 1 else 1
    rows = -(-len(lines) // columns)
    height = HEIGHT_IN - 0.4 if columns == 1 else 0.35 + rows * (PANEL_IN + (0.45 if rows == 1 else 0.0))
    made, legend_columns = figure(labels, height)
    grid = made.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(lines):
            axes.set_axis_off()
            continue
        layer = list(lines)[i]
        is_last = i + columns >= len(lines)
        frame(axes, Scale(x="step" if is_last else "", y=layer))
        axes.tick_params(labelbottom=is_last)
        for line in lines[layer]:
            plot(axes, line)
    legend(
        made,
        [Line(label=label, style=i, kind="curve", points=[]) for i, label in enumerate(labels)],
        legend_columns,
    )
    return picture(made, name, title)


def layer_section(findings: Findings) -> Section:
    """Both figures."""
    text = "What every MoE layer dropped and how evenly its experts were loaded, over the steps of training."
    return section("Routing over time", text, [layer_chart(findings, name) for name in LABELS])
