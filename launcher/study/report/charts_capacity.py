"""Charts of accuracy and loss against both capacities, that of training and that at inference."""

from collections.abc import Iterable

from launcher.study.drawing.chart import Chart, Line, Scale, chart, mean_points
from launcher.study.report.data import MOST_LINES, QualityMetric, ReportData, evenly
from launcher.study.report.labels import CAPACITY, factor
from launcher.study.report.reasons import no_capacity_axis, no_sweep
from launcher.study.report.section import Missing, Section, left_out, seeds_text


def capacity_sections(data: ReportData) -> list[Section]:
    """Both capacities, that of training and that at inference."""
    experts = data.evaluations[data.evaluations.configuration.isin(data.experts)]
    choices: list[int | None] = sorted(set(experts.top_k)) if len(experts) else [None]
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


def by_training_capacity(data: ReportData, metric: QualityMetric) -> Chart | Missing:
    """Quality against the capacity factor of training, dense models as a level."""
    families = {
        label: members
        for label, members in data.families(data.experts, CAPACITY).items()
        if len({data.settings[each].get(CAPACITY) for each in members}) > 1
    }
    if not families:
        return Missing(f"{metric.title} by capacity in training", *no_capacity_axis(data))
    chosen = {label: families[label] for label in evenly(list(families), MOST_LINES)}
    factors = {each: data.settings[each][CAPACITY] for members in chosen.values() for each in members}
    positions, spreads = capacity_positions(factors.values()), data.spreads(metric.key)
    lines = [
        Line(
            label,
            mean_points([positions[factors[each]] for each in members], spreads.loc[members]),
            data.style_of(label, members),
        )
        for label, members in chosen.items()
    ]
    lines += [
        Line(each, mean_points([0], spreads.loc[[each]]), data.styles[each], kind="level")
        for each in data.dense[:1]
    ]
    caption = f"Evaluated {_evaluated(data)}, {seeds_text(data, data.settings)}."
    caption += left_out(len(chosen), len(families)) + left_out(
        len(data.dense[:1]), len(data.dense), "dense models"
    )
    return chart(
        f"{metric.key}-training-capacity",
        f"{metric.title} by capacity in training",
        caption,
        lines,
        Scale("capacity factor in training", metric.label, texts(positions), is_dodged=True),
    )


def _evaluated(data: ReportData) -> str:
    moes = [data.models[label].moe for label in data.experts]
    exact = all(moe is None or moe.eval_capacity_factor == 0 for moe in moes)
    return "dropless" if exact else "at model.moe.eval_capacity_factor"


def by_inference_capacity(data: ReportData, metric: QualityMetric, top_k: int | None) -> Chart | Missing:
    """Quality against the capacity factor at inference, with so many choices; None: nothing is evaluated."""
    with_k = "" if top_k is None else f", k={top_k}"
    title = f"{metric.title} by capacity at inference{with_k}"
    if top_k is None:
        return Missing(title, *no_sweep(data, data.experts))
    if metric.key not in data.evaluations:
        return Missing(title, f"the evaluations at inference have no {metric.key}")
    rows = data.evaluations[
        data.evaluations.configuration.isin(data.experts) & (data.evaluations.top_k == top_k)
    ]
    spreads = rows.groupby(["configuration", "capacity_factor"], sort=False)[metric.key].agg(["mean", "std"])
    curves = {
        label: each.droplevel(0) for label, each in spreads.groupby(level=0, sort=False) if len(each) > 1
    }
    if not curves:
        return Missing(title, *no_sweep(data, data.experts, top_k))
    chosen = evenly(list(curves), MOST_LINES)
    positions = capacity_positions(f for label in chosen for f in curves[label].index)
    lines = [
        Line(
            label, mean_points([positions[f] for f in curves[label].index], curves[label]), data.styles[label]
        )
        for label in chosen
    ]
    caption = (
        f"Each line one configuration of training, its checkpoints evaluated at every capacity{with_k}; "
        f"{seeds_text(data, data.experts)}."
    )
    return chart(
        f"{metric.key}-inference-capacity-k{top_k}",
        title,
        caption + left_out(len(chosen), len(curves)),
        lines,
        Scale("capacity factor at inference", metric.label, texts(positions), is_dodged=True),
        "sweep.csv",
    )


def capacity_positions(factors: Iterable[float]) -> dict[float, float]:
    """Capacity factors on an axis: each at its size, and dropless (0) a step right of the largest."""
    every = set(factors)
    sizes = sorted({abs(value) for value in every if value})
    gap = max(0.35 * (sizes[-1] - sizes[0]), 0.1 * sizes[-1]) if sizes else 1.0
    return {value: abs(value) if value else (sizes[-1] + gap if sizes else 1.0) for value in every}


def texts(positions: dict[float, float]) -> dict[float, str]:
    """The text of each position; a factor and an upper bound of its size share one."""
    by_place: dict[float, list[str]] = {}
    for value in sorted(positions, reverse=True):
        by_place.setdefault(positions[value], []).append(factor(value))
    return {place: " and ".join(each) for place, each in by_place.items()}
