"""Charts of accuracy and loss, those against capacity first."""

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.study.report.drawing import Line, Point, Scale, draw, picture, styled
from launcher.study.report.findings import MOST_LINES, Chart, Findings, Metric, Section, seeds_said, spread_of
from launcher.study.report.groups import CAPACITY, Group, Spread, factor, families

SIDE_BY_SIDE = "Points of one capacity are set a little side by side."


def chart(
    name: str, title: str, caption: str, lines: Sequence[Line], scale: Scale, table: str = "cells.csv"
) -> Chart:
    """Draw lines as a chart of the report."""
    with styled():
        drawn = picture(draw(lines, scale), name, title)
    return Chart(name=name, title=title, caption=caption, picture=drawn, table=table)


def point(x: float, y: Spread, x_sd: float | None = None) -> Point:
    """A mean over seeds as a point."""
    return Point(x=x, y=y.mean, sd=y.sd, x_sd=x_sd)


def places(factors: Sequence[float]) -> dict[float, float]:
    """Where capacity factors stand on an axis: their size, and dropless (0) a step right of the largest."""
    sizes = sorted({abs(value) for value in factors if value})
    gap = max(0.35 * (sizes[-1] - sizes[0]), 0.1 * sizes[-1]) if sizes else 1.0
    return {value: abs(value) if value else (sizes[-1] + gap if sizes else 1.0) for value in factors}


def ticks(where: Mapping[float, float]) -> dict[float, str]:
    """The texts of those places, fewer where they would touch."""
    found: dict[float, str] = {}
    span = max(where.values(), default=1) - min(where.values(), default=0)
    for value in sorted(where, key=lambda value: (value != 0, -where[value])):  # dropless first
        near = [abs(where[value] - place) for place in found]
        room = 0.17 if 0 in where and where[value] > max(where.values()) - 0.3 * span else 0.1
        if all(distance > room * span for distance in near):
            found[where[value]] = factor(value)
    return found


def by_training_capacity(findings: Findings, metric: Metric) -> Chart | str:
    """Quality against the capacity factor of training, dense models as a level."""
    found = {
        label: members
        for label, members in families(findings.experts, CAPACITY).items()
        if len({group.settings.get(CAPACITY) for group in members}) > 1
    }
    if not found:
        return f"{metric.label} against the capacity of training: no two cells differ in {CAPACITY} alone."
    chosen = dict(list(found.items())[:MOST_LINES])
    where = places([group.settings[CAPACITY] for members in chosen.values() for group in members])
    lines = [
        Line(
            label=label,
            style=i,
            points=[point(where[group.settings[CAPACITY]], group.spread(metric.of)) for group in members],
        )
        for i, (label, members) in enumerate(chosen.items())
    ]
    caption = f"{_evaluated(findings)}, {seeds_said(findings.groups)}. {SIDE_BY_SIDE}"
    return chart(
        f"{metric.key}-training-capacity",
        f"{name_of(metric)} by capacity in training",
        caption + _left_out(len(chosen), len(found)),
        [*lines, *levels(findings.dense, metric)],
        Scale(x="capacity factor in training", y=metric.label, ticks=ticks(where), is_dodged=True),
    )


def _evaluated(findings: Findings) -> str:
    """How the evaluation at the end of training was done."""
    moes = [group.any.config.model.moe for group in findings.experts if group.any.config]
    exact = all(moe is None or moe.eval_capacity_factor == 0 for moe in moes)
    return "Evaluated dropless" if exact else "Evaluated at model.moe.eval_capacity_factor"


def levels(groups: Sequence[Group], metric: Metric) -> list[Line]:
    """Models without experts, which know no capacity."""
    return [
        Line(label=group.label, kind="level", points=[point(0, group.spread(metric.of))])
        for group in groups[:1]
    ]


def by_inference_capacity(findings: Findings, metric: Metric, top_k: int) -> Chart | str:
    """Quality against the capacity factor at inference, with a number of choices."""
    curves = {
        group.label: {f: rows for (f, k), rows in group.ways().items() if k == top_k}
        for group in findings.experts
    }
    curves = {label: points for label, points in curves.items() if len(points) > 1}
    if not curves:
        return f"{metric.label} against capacity at inference, k={top_k}: no cell has such a sweep."
    chosen = dict(_ends(list(curves.items())))
    where = places([f for points in chosen.values() for f in points])
    lines = [
        Line(
            label=label,
            style=i,
            points=[point(where[f], spread_of(rows, metric.of_row)) for f, rows in points.items()],
        )
        for i, (label, points) in enumerate(chosen.items())
    ]
    caption = (
        f"Each line one configuration of training, its checkpoints evaluated at every capacity, k={top_k}; "
        f"{seeds_said(findings.experts)}. {SIDE_BY_SIDE}"
    )
    return chart(
        f"{metric.key}-inference-capacity-k{top_k}",
        f"{name_of(metric)} by capacity at inference, k={top_k}",
        caption + _left_out(len(chosen), len(curves)),
        lines,
        Scale(x="capacity factor at inference", y=metric.label, ticks=ticks(where), is_dodged=True),
        "sweep.csv",
    )


def capacity_sections(findings: Findings) -> list[Section]:
    """Both capacities, that of training and that at inference."""
    training = [by_training_capacity(findings, metric) for metric in findings.metrics]
    choices = sorted({k for group in findings.experts for _, k in group.ways()})
    inference = [by_inference_capacity(findings, metric, k) for k in choices for metric in findings.metrics]
    return [
        section("Capacity in training", "What a capacity factor does while the model learns.", training),
        section(
            "Capacity at inference",
            "The same checkpoints, evaluated at other capacities and with other numbers of choices than they "
            "were trained with.",
            inference,
        ),
    ]


def section(title: str, text: str, found: Sequence[Chart | str]) -> Section:
    """Charts, and the reasons for those that there are not."""
    return Section(
        title=title,
        text=text,
        charts=[each for each in found if isinstance(each, Chart)],
        notes=[each for each in found if isinstance(each, str)],
    )


def name_of(metric: Metric) -> str:
    """A metric as a title begins with it."""
    return "Accuracy" if metric.key == "top1" else "Loss"


def _ends(items: list[Any]) -> list[Any]:
    """At most MOST_LINES, spread evenly from the first to the last."""
    if len(items) <= MOST_LINES:
        return items
    return [items[round(i * (len(items) - 1) / (MOST_LINES - 1))] for i in range(MOST_LINES)]


def _left_out(drawn: int, there: int) -> str:
    return "" if drawn == there else f" {drawn} of {there} configurations are drawn; the CSV has all."
