"""What a study shows, in sentences with numbers; what lies within the spread of the seeds is called so."""

import json
from collections.abc import Sequence

import pandas as pd

from launcher.study.report.data import (
    CAPACITY,
    DENSE,
    PRIORITY,
    QualityMetric,
    ReportData,
    Spread,
    at_factor,
    factor,
)

WITHIN = "within the spread of the seeds"
PAIRS = "pairs, seeds and other options together"
MOST_TIMES = 99  # beyond, the number of spreads is not written


def summary(data: ReportData) -> list[str]:
    """The sentences, the most important first."""
    if not data.settings:
        return ["No trial has finished its training, so there is nothing to show yet."]
    metric = data.metrics[0]
    options = dict.fromkeys(name for label in data.experts for name in data.settings[label] if name != DENSE)
    sentences = [_best(data, metric), _over_dense(data, metric)]
    sentences += [_effect(data, metric, option) for option in options]
    sentences += [_at_inference(data, metric), _priority_at_inference(data, metric), _dropped(data)]
    return [sentence for sentence in sentences if sentence]


def value_text(spread: Spread, metric: QualityMetric) -> str:
    """A mean with its spread and n: `62.10 ± 0.34 % (n=2)`."""
    return f"{spread.text(metric.digits)}{metric.percent} (n={spread.n})"


def verdict(change: Spread, of: str = "seeds") -> str:
    """How a difference compares to its spread over seeds, or over pairs of trials."""
    if pd.isna(change.std):
        return "one pair of trials, so its spread is not known"
    if abs(change.mean) <= change.std:
        return f"within the spread of the {of}"
    times = abs(change.mean) / change.std if change.std else MOST_TIMES
    text = f"{times:.1f} times it" if times < MOST_TIMES else f"more than {MOST_TIMES} times it"
    return f"beyond the spread of the {of} ({text}, n={change.n})"


def _change(change: Spread, metric: QualityMetric) -> str:
    return f"{change.text(metric.digits, '+')} {metric.change}"


def _ranked(data: ReportData, labels: Sequence[str], metric: QualityMetric) -> list[str]:
    """The configurations, the best one first."""
    means = data.spreads(metric.key)["mean"]
    return sorted(labels, key=lambda label: -metric.sign * means[label])


def _best(data: ReportData, metric: QualityMetric) -> str:
    ranked = _ranked(data, list(data.settings), metric)
    first = data.spread(ranked[0], metric.key)
    text = f"Best {metric.label.split(',')[0]}: {ranked[0]} with {value_text(first, metric)}"
    if len(ranked) == 1:
        return f"{text}; it is the only configuration."
    second = data.spread(ranked[1], metric.key)
    gap, spread = abs(first.mean - second.mean), (first.std**2 + second.std**2) ** 0.5
    if pd.isna(spread):
        close = "which one seed cannot tell apart"
    else:
        close = f"a difference {WITHIN}" if gap <= spread else f"{gap / spread:.1f} spreads behind"
    return (
        f"{text}, the first of {len(ranked)} configurations. The next, {ranked[1]}, has "
        f"{value_text(second, metric)}, {close}. The best of many is partly luck."
    )


def _over_dense(data: ReportData, metric: QualityMetric) -> str:
    if not data.dense or not data.experts:
        return ""
    best, dense = _ranked(data, data.experts, metric)[0], _ranked(data, data.dense, metric)[0]
    change = Spread.of(data.differences([(dense, best)], metric.key))
    every = Spread.of(data.differences([(dense, label) for label in data.experts], metric.key))
    if not change.n:
        return ""
    of = value_text(data.spread(dense, metric.key), metric)
    return (
        f"Experts over dense: the best configuration of experts ({best}) changes the dense model's "
        f"{of} by {_change(change, metric)}, {verdict(change)}. "
        f"All {len(data.experts)} configurations of experts together: {_change(every, metric)}."
    )


def _effect(data: ReportData, metric: QualityMetric, option: str) -> str:
    """The difference between the ends of an axis, in pairs of trials that agree in all else, seed by seed."""
    values = _ends(data, option)
    change = Spread.of(data.differences(data.pairs(option, *values), metric.key) if values else [])
    if not values or not change.n:
        return ""
    return (
        f"{option} from {_value(option, values[0])} to {_value(option, values[1])} in training: "
        f"{_change(change, metric)}, over {change.n} {'pair' if change.n == 1 else 'pairs'} of trials that "
        f"differ in nothing else: {verdict(change, PAIRS)}."
    )


def _ends(data: ReportData, option: str) -> tuple[object, object] | None:
    """The least and the most of an option's values; off and on; the first and the last of other kinds."""
    settings = [data.settings[label] for label in data.experts if option in data.settings[label]]
    values = list({json.dumps(each[option]): each[option] for each in settings}.values())
    if len(values) < 2:
        return None
    if all(isinstance(value, int | float) for value in values):
        infinite = option == CAPACITY
        values.sort(key=lambda value: float("inf") if infinite and not value else abs(value))
    return values[0], values[-1]


def _value(option: str, value: object) -> str:
    return factor(value) if option == CAPACITY and isinstance(value, int | float) else json.dumps(value)


def _as_trained(data: ReportData) -> pd.DataFrame:
    """The evaluations of models with experts at the k of their training, the smallest capacity first."""
    rows = data.evaluations
    if rows.empty:
        return rows.assign(top_k=[], trained_top_k=[], size=[])
    rows = rows[rows.configuration.isin(data.experts) & (rows.top_k == rows.trained_top_k)]
    size = rows.capacity_factor.replace(0.0, float("inf"))  # 0 is dropless
    return rows.assign(size=size).sort_values("size", kind="stable")


def _at_inference(data: ReportData, metric: QualityMetric) -> str:
    """The smallest against the largest capacity at inference, each checkpoint with the k of its training."""
    by_trial = _as_trained(data).groupby(["configuration", "seed"])
    swept = by_trial.filter(lambda rows: len(rows) > 1).groupby(["configuration", "seed"])
    low, high = swept.first(), swept.last()
    if low.empty or low.capacity_factor.nunique() > 1 or high.capacity_factor.nunique() > 1:
        return ""
    change, drop = Spread.of(low[metric.key] - high[metric.key]), low.dropped_fraction.mean()
    factors = [at_factor(each.capacity_factor.iloc[0]) for each in (low, high)]
    return (
        f"Capacity at inference: {factors[0]} instead of {factors[1]} drops "
        f"{drop:.0%} of the choices and changes the same checkpoints by {_change(change, metric)} "
        f"({change.n} checkpoints): {verdict(change, PAIRS)}."
    )


def _priority_at_inference(data: ReportData, metric: QualityMetric) -> str:
    """The difference that the priority makes at the smallest capacity at inference."""
    rows = _as_trained(data)
    rows = rows[rows.capacity_factor > 0] if len(rows) else rows
    differences, factors = [], set()
    for off, on in data.pairs(PRIORITY, False, True):
        at = [rows[rows.configuration == label].set_index("seed") for label in (off, on)]
        if shared := set(at[0].capacity_factor) & set(at[1].capacity_factor):
            factors.add(smallest := min(shared))
            off_value, on_value = (each.loc[each.capacity_factor == smallest, metric.key] for each in at)
            differences.append((on_value - off_value).dropna())
    if len(factors) != 1 or not (change := Spread.of(pd.concat(differences))).n:
        return ""
    return (
        f"Priority where capacity is short: evaluated at {at_factor(factors.pop())}, trials trained and "
        f"served with batch priority differ from those without by {_change(change, metric)} "
        f"({change.n} pairs): {verdict(change, PAIRS)}."
    )


def _dropped(data: ReportData) -> str:
    if not data.experts:
        return ""
    means = data.spreads("dropped_fraction")["mean"].loc[data.experts]
    least, most = means.idxmin(), means.iloc[::-1].idxmax()
    low, high = f"{means[least]:.1%} of the choices ({least})", f"{means[most]:.1%} ({most})"
    return f"Dropped in training: from {low} to {high}."
