"""What a study shows, in sentences with numbers: differences, and of at least two seeds how sure they are."""

import json
from collections.abc import Sequence

import pandas as pd

from launcher.study.report.data import QualityMetric, ReportData, Spread
from launcher.study.report.labels import CAPACITY, DENSE, PRIORITY, at_factor, factor
from launcher.study.report.reasons import (
    AGAIN,
    Reason,
    no_dense,
    no_experts,
    no_sweep,
    no_two_values,
)
from launcher.study.report.section import Missing
from launcher.study.report.verdict import Change, between

SEEDS, PAIRS = "seeds", "pairs, seeds and other options together"  # what a spread is of


def summary(data: ReportData) -> list[str]:
    """The sentences, the most important first."""
    return [fact for fact in facts(data) if isinstance(fact, str)]


def facts(data: ReportData) -> list[str | Missing]:
    """The sentences, and the reasons for those that the study has no numbers for."""
    if not data.settings:
        return ["No trial has finished its training, so there is nothing to show yet."]
    if not data.metrics:
        return ["The trials have no metric in common, so they cannot be compared."]
    metric = data.metrics[0]
    options = dict.fromkeys(name for label in data.experts for name in data.settings[label] if name != DENSE)
    every: list[str | Missing] = [_best(data, metric), _over_dense(data, metric)]
    every += [_effect(data, metric, option) for option in options]
    every += [_at_inference(data, metric), _priority_at_inference(data, metric), _dropped(data)]
    return every


def value_text(spread: Spread, metric: QualityMetric) -> str:
    """A mean with its spread and n: `62.10 ± 0.34 % (n=2)`."""
    return f"{spread.text(metric.digits)}{metric.percent} (n={spread.n})"


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
    return (
        f"{text}, the first of {len(ranked)} configurations. The next, {ranked[1]}, has "
        f"{value_text(second, metric)}, {between(first, second, metric)}. The best of many is partly luck."
    )


def _over_dense(data: ReportData, metric: QualityMetric) -> str | Missing:
    title = "Experts over dense"
    if not data.experts or not data.dense:
        return Missing(title, *(no_dense() if data.experts else no_experts()))
    best, dense = _ranked(data, data.experts, metric)[0], _ranked(data, data.dense, metric)[0]
    differences = data.differences([(dense, best)], metric.key)
    if differences.empty:
        return Missing(title, f"{dense} and {best}, the best of each kind, have no seed in common", AGAIN)
    every = Change.of(data.differences([(dense, label) for label in data.experts], metric.key))
    of, change = value_text(data.spread(dense, metric.key), metric), Change.of(differences)
    return (
        f"{title}: the best configuration of experts ({best}) changes the dense model's "
        f"{of} by {change.text(metric)}, {change.verdict(SEEDS)}. "
        f"All {len(data.experts)} configurations of experts together: {every.text(metric)}."
    )


def _effect(data: ReportData, metric: QualityMetric, option: str) -> str | Missing:
    """The difference between the ends of an axis, in pairs of trials that agree in all else, seed by seed."""
    values = _ends(data, option)
    differences = data.differences(data.pairs(option, *values) if values else [], metric.key)
    if not values or differences.empty:
        return Missing(f"Effect of {option} in training", *no_two_values(data, option, []))
    change = Change.of(differences)
    return (
        f"{option} from {_value(option, values[0])} to {_value(option, values[1])} in training: "
        f"{change.text(metric)}, over {change.n} {'pair' if change.n == 1 else 'pairs'} of trials that "
        f"differ in nothing else: {change.verdict(PAIRS)}."
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
    rows = rows[rows.configuration.isin(data.experts) & (rows.top_k == rows.trained_top_k)]
    size = rows.capacity_factor.replace(0.0, float("inf"))  # 0 is dropless
    return rows.assign(size=size).sort_values("size", kind="stable")


def _at_inference(data: ReportData, metric: QualityMetric) -> str | Missing:
    """The smallest against the largest capacity at inference, each checkpoint with the k of its training."""
    title = "Capacity at inference"
    if data.evaluations.empty or not data.experts:
        return Missing(title, *no_sweep(data, data.experts))
    if metric.key not in data.evaluations:
        return Missing(title, f"the evaluations at inference have no {metric.key}")
    by_trial = _as_trained(data).groupby(["configuration", "seed"])
    swept = by_trial.filter(lambda rows: len(rows) > 1).groupby(["configuration", "seed"])
    low, high = swept.first(), swept.last()
    if low.empty:
        return Missing(title, *no_sweep(data, data.experts))
    if low.capacity_factor.nunique() > 1 or high.capacity_factor.nunique() > 1:
        return Missing(
            title, "checkpoints are evaluated between different smallest and largest capacities", AGAIN
        )
    change, drop = Change.of(low[metric.key] - high[metric.key]), low.dropped_fraction.mean()
    factors = [at_factor(each.capacity_factor.iloc[0]) for each in (low, high)]
    return (
        f"{title}: {factors[0]} instead of {factors[1]} drops "
        f"{drop:.0%} of the choices and changes the same checkpoints by {change.text(metric)} "
        f"({change.n} {'checkpoint' if change.n == 1 else 'checkpoints'}): {change.verdict(PAIRS)}."
    )


def _priority_at_inference(data: ReportData, metric: QualityMetric) -> str | Missing:
    """The difference that the priority makes at the smallest capacity at inference."""
    title = "Priority where capacity is short"
    pairs = data.pairs(PRIORITY, False, True)
    if not pairs:
        return Missing(title, *no_two_values(data, PRIORITY, [False, True]))
    if data.evaluations.empty or metric.key not in data.evaluations:
        return Missing(title, *no_sweep(data, data.experts))
    rows = _as_trained(data)
    rows = rows[rows.capacity_factor > 0]
    differences, factors = [pd.Series(dtype=float)], set()
    for off, on in pairs:
        at = [rows[rows.configuration == label].set_index("seed") for label in (off, on)]
        if shared := set(at[0].capacity_factor) & set(at[1].capacity_factor):
            factors.add(smallest := min(shared))
            off_value, on_value = (each.loc[each.capacity_factor == smallest, metric.key] for each in at)
            differences.append((on_value - off_value).dropna())
    every = pd.concat(differences[1:]) if differences[1:] else differences[0]
    if every.empty or len(factors) > 1:
        return Missing(title, *_no_shortage(data, factors))
    change = Change.of(every)
    return (
        f"{title}: evaluated at {at_factor(factors.pop())}, trials trained and "
        f"served with batch priority differ from those without by {change.text(metric)} "
        f"({change.n} {'pair' if change.n == 1 else 'pairs'}): {change.verdict(PAIRS)}."
    )


def _no_shortage(data: ReportData, factors: set[float]) -> Reason:
    """Why trials with and without priority were not compared at a capacity."""
    if len(factors) > 1:
        return Reason(
            f"pairs of trials are evaluated at different smallest capacities {sorted(factors)}", AGAIN
        )
    swept = data.study.capacity_factors
    text = f"`capacity_factors: {json.dumps([0.5, *swept])}` in `evaluate` of the study's file"
    add = AGAIN if any(swept) else text
    return Reason("no pair of trials with and without it is evaluated at one capacity above 0", add)


def _dropped(data: ReportData) -> str | Missing:
    if not data.experts:
        return Missing("Dropped in training", *no_experts())
    means = data.spreads("dropped_fraction")["mean"].loc[data.experts]
    least, most = means.idxmin(), means.iloc[::-1].idxmax()
    low, high = f"{means[least]:.1%} of the choices ({least})", f"{means[most]:.1%} ({most})"
    return f"Dropped in training: from {low} to {high}."
