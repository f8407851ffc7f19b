"""Charts of accuracy and loss against capacity, size, work and speed; of the MoE layers over the steps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from launcher.study.report.data import CAPACITY, MOST_LINES, QualityMetric, ReportData, factor
from launcher.study.report.drawing import Chart, Line, Scale, chart, mean_points, panels

SIDE_BY_SIDE = "Points of one capacity are set a little side by side."
BINS = 40  # of the steps; a point is the mean of its steps
MOST_LAYERS = 12  # of one chart
COSTS = {  # column of the trials: name of the chart, title, axis, remark
    "active_parameters": ("active", "active parameters", "parameters that one token meets", ""),
    "parameters": ("total", "all parameters", "parameters", ""),
    "flops": (
        "flops",
        "FLOPs",
        "multiply-adds of one image",
        "Multiply-adds of one image, dropped tokens counted too.",
    ),
    "images_s": (
        "speed",
        "speed in training",
        "images/s in training, all ranks",
        "As measured: whatever else the machine did then is in it.",
    ),
}
LAYER_CHARTS = {  # metric of a layer: name of the chart, title, what it is, unit
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


class Section(NamedTuple):
    """A part of the report: charts, and the reasons for those that are missing."""

    title: str
    text: str
    charts: Sequence[Chart]
    notes: Sequence[str]

    @classmethod
    def of(cls, title: str, text: str, parts: Iterable[Chart | str]) -> "Section":
        """A section of charts and reasons."""
        every = list(parts)
        charts = [each for each in every if isinstance(each, Chart)]
        return cls(title, text, charts, [each for each in every if isinstance(each, str)])


def seeds_text(data: ReportData, labels: Iterable[str]) -> str:
    """The number of seeds behind a mean, for a caption."""
    counts = data.seeds_of(labels)
    if not counts or counts == [1]:
        return "one seed, so no spread"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {n} seeds, bars are one standard deviation"


def capacity_sections(data: ReportData) -> list[Section]:
    """Both capacities, that of training and that at inference."""
    experts = data.evaluations[data.evaluations.configuration.isin(data.experts)]
    choices = sorted(set(experts.top_k)) if len(experts) else []
    return [
        Section.of(
            "Capacity in training",
            "What a capacity factor does while the model learns.",
            [by_training_capacity(data, metric) for metric in data.metrics],
        ),
        Section.of(
            "Capacity at inference",
            "The same checkpoints, evaluated at other capacities and with other numbers of choices than they "
            "were trained with.",
            [by_inference_capacity(data, metric, k) for k in choices for metric in data.metrics],
        ),
    ]


def by_training_capacity(data: ReportData, metric: QualityMetric) -> Chart | str:
    """Quality against the capacity factor of training, dense models as a level."""
    families = {
        label: members
        for label, members in data.families(data.experts, CAPACITY).items()
        if len({data.settings[each].get(CAPACITY) for each in members}) > 1
    }
    if not families:
        return f"{metric.label} against the capacity of training: no two trials differ in {CAPACITY} alone."
    chosen = dict(list(families.items())[:MOST_LINES])
    factors = {each: data.settings[each][CAPACITY] for members in chosen.values() for each in members}
    positions, spreads = capacity_positions(factors.values()), data.spreads(metric.key)
    lines = [
        Line(
            label, mean_points([positions[factors[each]] for each in members], spreads.loc[members]), style=i
        )
        for i, (label, members) in enumerate(chosen.items())
    ]
    lines += [Line(each, mean_points([0], spreads.loc[[each]]), kind="level") for each in data.dense[:1]]
    moes = [data.models[label].moe for label in data.experts]
    exact = all(moe is None or moe.eval_capacity_factor == 0 for moe in moes)
    evaluated = "dropless" if exact else "at model.moe.eval_capacity_factor"
    caption = f"Evaluated {evaluated}, {seeds_text(data, data.settings)}. {SIDE_BY_SIDE}"
    return chart(
        f"{metric.key}-training-capacity",
        f"{metric.title} by capacity in training",
        caption + _left_out(len(chosen), len(families)),
        lines,
        Scale("capacity factor in training", metric.label, ticks(positions), is_dodged=True),
    )


def by_inference_capacity(data: ReportData, metric: QualityMetric, top_k: int) -> Chart | str:
    """Quality against the capacity factor at inference, with a number of choices."""
    rows = data.evaluations[
        data.evaluations.configuration.isin(data.experts) & (data.evaluations.top_k == top_k)
    ]
    spreads = rows.groupby(["configuration", "capacity_factor"], sort=False)[metric.key].agg(["mean", "std"])
    curves = {
        label: each.droplevel(0) for label, each in spreads.groupby(level=0, sort=False) if len(each) > 1
    }
    if not curves:
        return f"{metric.label} against capacity at inference, k={top_k}: no trial has such a sweep."
    chosen = evenly(list(curves), MOST_LINES)
    positions = capacity_positions(f for label in chosen for f in curves[label].index)
    lines = [
        Line(label, mean_points([positions[f] for f in curves[label].index], curves[label]), style=i)
        for i, label in enumerate(chosen)
    ]
    caption = (
        f"Each line one configuration of training, its checkpoints evaluated at every capacity, k={top_k}; "
        f"{seeds_text(data, data.experts)}. {SIDE_BY_SIDE}"
    )
    return chart(
        f"{metric.key}-inference-capacity-k{top_k}",
        f"{metric.title} by capacity at inference, k={top_k}",
        caption + _left_out(len(chosen), len(curves)),
        lines,
        Scale("capacity factor at inference", metric.label, ticks(positions), is_dodged=True),
        "sweep.csv",
    )


def capacity_positions(factors: Iterable[float]) -> dict[float, float]:
    """Capacity factors on an axis: each at its size, and dropless (0) a step right of the largest."""
    every = set(factors)
    sizes = sorted({abs(value) for value in every if value})
    gap = max(0.35 * (sizes[-1] - sizes[0]), 0.1 * sizes[-1]) if sizes else 1.0
    return {value: abs(value) if value else (sizes[-1] + gap if sizes else 1.0) for value in every}


def ticks(positions: Mapping[float, float]) -> dict[float, str]:
    """The texts of those positions, fewer where they would touch."""
    texts: dict[float, str] = {}
    span = max(positions.values(), default=1) - min(positions.values(), default=0)
    for value in sorted(positions, key=lambda value: (value != 0, -positions[value])):  # dropless first
        near = [abs(positions[value] - other) for other in texts]
        is_last = 0 in positions and positions[value] > max(positions.values()) - 0.3 * span
        if all(distance > (0.17 if is_last else 0.1) * span for distance in near):
            texts[positions[value]] = factor(value)
    return texts


def cost_section(data: ReportData) -> Section:
    """Size, work and speed."""
    parts = [by_cost(data, metric, column) for column in COSTS for metric in data.metrics]
    return Section.of("Size, work and speed", "What accuracy and loss cost.", parts)


def by_cost(data: ReportData, metric: QualityMetric, column: str) -> Chart | str:
    """Quality against a cost, a point a configuration."""
    name, title, x, remark = COSTS[column]
    low, high = data.trials[column].min(), data.trials[column].max()
    if data.trials[column].round(9).nunique() < 2:
        return f"{metric.label} against {title}: all trials have the same, so there is no chart."
    costs, spreads = data.spreads(column), data.spreads(metric.key)
    lines = [
        Line(label, mean_points(cost["mean"], spreads.loc[members], cost["std"]), style=i, kind="loose")
        for i, (label, members) in enumerate(data.few_families().items())
        for cost in [costs.loc[members]]
    ]
    return chart(
        f"{metric.key}-{name}",
        f"{metric.title} by {title}",
        f"A point a configuration, {seeds_text(data, data.settings)}. {remark}".strip(),
        lines,
        Scale(x, metric.label, is_log_x=high > 4 * low > 0),
    )


def layer_section(data: ReportData, curves: pd.DataFrame) -> Section:
    """What the MoE layers dropped and how they were loaded; `curves` are those of `layer_curves`."""
    text = "What every MoE layer dropped and how evenly its experts were loaded, over the steps of training."
    return Section.of("Routing over time", text, [layer_chart(data, curves, name) for name in LAYER_CHARTS])


def layer_curves(data: ReportData) -> pd.DataFrame:
    """The means over seeds of each configuration's layers, a row for each of BINS spans of steps."""
    if data.layers.empty:
        return pd.DataFrame(columns=["configuration", "layer", "step", *LAYER_CHARTS])
    keys = ["layer", "configuration"]
    layers = data.layers.reset_index(drop=True)
    layers = layers.assign(**{key: pd.Categorical(layers[key], layers[key].unique()) for key in keys})
    width = (layers.groupby(keys, observed=True).step.transform("max") / BINS).clip(lower=1.0)
    binned = layers.assign(span=((layers.step - 1) / width).astype(int))
    by_seed = binned.groupby([*keys, "span", "seed"], observed=True)[["step", *LAYER_CHARTS]].mean()
    curves = by_seed.groupby(level=[*keys, "span"], observed=True).mean().reset_index()
    return curves[["configuration", "layer", "step", *LAYER_CHARTS]].astype(dict.fromkeys(keys, object))


def layer_chart(data: ReportData, curves: pd.DataFrame, metric: str) -> Chart | str:
    """A panel for each layer, a line for each configuration."""
    name, title, label, unit = LAYER_CHARTS[metric]
    curves = curves.dropna(subset=metric)
    if curves.empty:
        return f"{title}: no trial recorded it."
    every = list(dict.fromkeys(curves.layer))
    labels, layers = evenly(data.experts, MOST_LINES), evenly(every, MOST_LAYERS)
    groups = dict(list(curves.groupby(["layer", "configuration"])))
    lines = {
        layer: [
            Line(each, pd.DataFrame({"x": curve.step, "y": unit * curve[metric]}), style=i, kind="curve")
            for i, each in enumerate(labels)
            if (curve := groups.get((layer, each))) is not None
        ]
        for layer in layers
    }
    caption = (
        f"{label[0].upper()}{label[1:]}, in training; a panel a layer, a point the mean of 1/{BINS} of the "
        f"steps over the seeds ({seeds_text(data, data.experts).split(',')[0]})."
    )
    caption += _left_out(len(labels), len(data.experts))
    if len(layers) < len(every):
        caption += f" {len(layers)} of {len(every)} layers are drawn."
    return panels(name, title, caption, lines, Scale("step", ""), "layers.csv")


def evenly(items: list[str], most: int) -> list[str]:
    """At most so many, evenly from the first to the last."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _left_out(drawn: int, there: int) -> str:
    return "" if drawn == there else f" {drawn} of {there} configurations are drawn; the CSV has all."
