"""What accuracy costs at inference: every evaluation, and those that no other one beats."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from launcher.study.drawing.chart import Chart, Line, Scale, chart
from launcher.study.report.data import QualityMetric, ReportData
from launcher.study.report.labels import at_factor
from launcher.study.report.reasons import AGAIN
from launcher.study.report.section import Missing, Section, seeds_text


class Price(NamedTuple):
    """What is to be kept low: `sign` times `column` of the choices."""

    name: str
    title: str
    x: str
    column: str
    sign: int
    remark: str


PRICES = (
    Price(
        name="images",
        title="images/s at inference",
        x="images/s at inference, all ranks",
        column="images_s",
        sign=-1,
        remark="Speeds are as measured: whatever else the machine did then is in them.",
    ),
    Price(
        name="flops",
        title="FLOPs at inference",
        x="multiply-adds of one image",
        column="flops",
        sign=1,
        remark="A capacity changes no FLOPs here: dropped tokens are counted too.",
    ),
)


def choices(data: ReportData) -> pd.DataFrame:
    """Every configuration at every capacity and number of choices at which its checkpoints were evaluated.

    A row has the columns of pareto.csv; front_images and front_flops are the place on a front, <NA> off it.
    The metric, the first of the study's, is in the units of the report. `at` says how it was evaluated.
    """
    if not data.metrics or data.metrics[0].key not in data.evaluations:
        return pd.DataFrame()
    metric = data.metrics[0]
    groups = data.evaluations.dropna(subset=metric.key).groupby(
        ["configuration", "capacity_factor", "top_k"], sort=False
    )
    table = groups.agg(
        **{
            metric.key: (metric.key, "mean"),
            f"{metric.key}_sd": (metric.key, "std"),
            "images_s": ("images_s", "mean"),
            "images_s_sd": ("images_s", "std"),
            "flops": ("flops", "first"),
            "dropped_fraction": ("dropped_fraction", "mean"),
            "seeds": ("seed", "size"),
        }
    ).reset_index()
    for price in PRICES:
        order = front(list(metric.sign * table[metric.key]), list(price.sign * table[price.column]))
        places = pd.Series(range(1, len(order) + 1), index=order)
        table[f"front_{price.name}"] = places.reindex(table.index).astype("Int64")
    table["at"] = [
        "exact" if row.configuration in data.dense else f"{at_factor(row.capacity_factor)} k={row.top_k}"
        for row in table.itertuples()
    ]
    return table


def front(gain: Sequence[float], cost: Sequence[float]) -> list[int]:
    """The indices of the non-dominated points, cheapest first.

    A point is dominated if another has at least its gain for at most its cost and is better in one of them.
    Of equal points all stay. By one pass in order of cost, and of falling gain where the cost is the same.

    Args:
        gain: of each point, more is better.
        cost: of each point, less is better.
    """
    kept: list[int] = []
    for i in sorted(range(len(gain)), key=lambda i: (cost[i], -gain[i], i)):
        last = kept[-1] if kept else None
        if last is None or gain[i] > gain[last] or (gain[i], cost[i]) == (gain[last], cost[last]):
            kept.append(i)
    return kept


def pareto_section(data: ReportData, table: pd.DataFrame) -> Section:
    """Both fronts, of the primary metric."""
    text = (
        "A point is on the front if no other one is at least as good and at least as cheap, and better in "
        f"one of both. {_how_sure(data)}"
    )
    parts = [pareto_chart(data, table, metric, price) for metric in data.metrics[:1] for price in PRICES]
    return Section.of("Pareto front", text, parts)


def _how_sure(data: ReportData) -> str:
    if data.seeds_of(data.settings) == [1]:
        return "Each point is one seed, so its place on the front may be chance."
    return "The front is of means: neighbours whose spreads overlap may change places with other seeds."


def pareto_chart(
    data: ReportData, table: pd.DataFrame, metric: QualityMetric, price: Price
) -> Chart | Missing:
    """All choices, the front as a numbered line."""
    if len(table) < 2:
        return Missing(f"{metric.title} against {price.title}", *_too_few(data, metric, len(table)))
    points = table.assign(x=table[price.column], y=table[metric.key], sd=table[f"{metric.key}_sd"])
    if f"{price.column}_sd" in table:
        points = points.assign(x_sd=table[f"{price.column}_sd"])
    lines = [
        Line(
            label,
            points[points.configuration.isin(members)],
            data.style_of(label, members),
            kind="loose",
        )
        for label, members in data.few_families().items()
    ]
    kept = points.dropna(subset=f"front_{price.name}").sort_values(f"front_{price.name}")
    caption = (
        f"Every configuration at every capacity and k at inference, {seeds_text(data, data.settings)}. The "
        f"stepped line and its numbers are the {len(kept)} of {len(table)} that no other one beats in both "
        f"means; the table below names them. {price.remark}"
    )
    title, scale = f"{metric.title} against {price.title}", Scale(price.x, metric.label)
    return chart(f"pareto-{price.name}", title, caption, lines, scale, "pareto.csv", front=kept)


def _too_few(data: ReportData, metric: QualityMetric, count: int) -> tuple[str, str]:
    """Why there is no front: fewer than two points."""
    if data.evaluations.empty:
        return "no checkpoint is evaluated", AGAIN
    if metric.key not in data.evaluations:
        return f"the evaluations at inference have no {metric.key}", ""
    return (
        f"a front needs two evaluations, and there is {count}",
        "`capacity_factors: [0.5, 1.25]` in `evaluate`",
    )
