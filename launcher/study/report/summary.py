"""What a study shows, in sentences with numbers; what lies within the spread of the seeds is called so."""

import json
from collections.abc import Sequence

from launcher.study.report.findings import Findings, Metric, spread_of
from launcher.study.report.groups import (
    CAPACITY,
    DENSE,
    PRIORITY,
    Group,
    Spread,
    at_factor,
    differences,
    factor,
    pairs,
)

WITHIN = "within the spread of the seeds"
PAIRS = "pairs, seeds and other options together"
MOST_TIMES = 99  # a spread is told in so many times at most


def facts(findings: Findings) -> list[str]:
    """The sentences, the most important first."""
    if not findings.groups:
        return ["No cell has finished its training, so there is nothing to show yet."]
    metric = findings.metrics[0]
    found = [_best(findings, metric), _over_dense(findings, metric)]
    found += [_effect(findings, metric, option) for option in _options(findings)]
    found += [_at_inference(findings, metric), _priority_at_inference(findings, metric), _dropped(findings)]
    return [sentence for sentence in found if sentence]


def said(spread: Spread, metric: Metric) -> str:
    """A mean with its spread and n: `62.10 ± 0.34 (n=2)`."""
    digits = 2 if metric.key == "top1" else 4
    around = f" ± {spread.sd:.{digits}f}" if spread.sd is not None else ""
    percent = " %" if metric.key == "top1" else ""
    return f"{spread.mean:.{digits}f}{around}{percent} (n={spread.n})"


def verdict(change: Spread, of: str = "seeds") -> str:
    """How a difference stands against its spread over seeds, or over pairs of cells."""
    if change.sd is None:
        return "one pair of cells, so its spread is not known"
    if abs(change.mean) <= change.sd:
        return f"within the spread of the {of}"
    times = abs(change.mean) / change.sd if change.sd else MOST_TIMES
    told = f"{times:.1f} times it" if times < MOST_TIMES else f"more than {MOST_TIMES} times it"
    return f"beyond the spread of the {of} ({told}, n={change.n})"


def _change(change: Spread, metric: Metric) -> str:
    digits = 2 if metric.key == "top1" else 4
    around = f" ± {change.sd:.{digits}f}" if change.sd is not None else ""
    return f"{change.mean:+.{digits}f}{around} {metric.change}"


def _ranked(groups: Sequence[Group], metric: Metric) -> list[Group]:
    return sorted(groups, key=lambda group: -metric.sign * group.spread(metric.of).mean)


def _best(findings: Findings, metric: Metric) -> str:
    ranked = _ranked(findings.groups, metric)
    first = ranked[0].spread(metric.of)
    text = f"Best {metric.label.split(',')[0]}: {ranked[0].label} with {said(first, metric)}"
    if len(ranked) == 1:
        return f"{text}; it is the only configuration."
    second = ranked[1].spread(metric.of)
    gap = abs(first.mean - second.mean)
    spread = ((first.sd or 0.0) ** 2 + (second.sd or 0.0) ** 2) ** 0.5
    if first.sd is None or second.sd is None:
        close = "which one seed cannot tell apart"
    else:
        close = f"a difference {WITHIN}" if gap <= spread else f"{gap / spread:.1f} spreads behind"
    return (
        f"{text}, the first of {len(ranked)} configurations. The next, {ranked[1].label}, has "
        f"{said(second, metric)}, {close}. The best of many is partly luck."
    )


def _over_dense(findings: Findings, metric: Metric) -> str:
    if not findings.dense or not findings.experts:
        return ""
    best, dense = _ranked(findings.experts, metric)[0], _ranked(findings.dense, metric)[0]
    values = differences([(dense, best)], metric.of)
    if not values:
        return ""
    change = Spread.of(values)
    every = [d for group in findings.experts for d in differences([(dense, group)], metric.of)]
    return (
        f"Experts over dense: the best configuration of experts ({best.label}) changes the dense model's "
        f"{said(dense.spread(metric.of), metric)} by {_change(change, metric)}, {verdict(change)}. All "
        f"{len(findings.experts)} configurations of experts together: {_change(Spread.of(every), metric)}."
    )


def _options(findings: Findings) -> list[str]:
    """The options that differ among the configurations with experts."""
    names = [name for group in findings.experts for name in group.settings]
    return [name for name in dict.fromkeys(names) if name != DENSE]


def _effect(findings: Findings, metric: Metric, option: str) -> str:
    """What the ends of an axis differ by, in pairs of cells that agree in all else, seed by seed."""
    values = _ends(findings.experts, option)
    found = differences(pairs(findings.experts, option, *values), metric.of) if values else []
    if not values or not found:
        return ""
    change = Spread.of(found)
    return (
        f"{option} from {_value(option, values[0])} to {_value(option, values[1])} in training: "
        f"{_change(change, metric)}, over {change.n} {_pairs(change.n)} of cells that differ in nothing "
        f"else: {verdict(change, PAIRS)}."
    )


def _pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _ends(groups: Sequence[Group], option: str) -> tuple[object, object] | None:
    """The least and the most of an option's values; off and on; the first and the last of other kinds."""
    values = list(
        {json.dumps(g.settings[option]): g.settings[option] for g in groups if option in g.settings}.values()
    )
    if len(values) < 2:
        return None
    if all(isinstance(value, int | float) for value in values):
        infinite = option == CAPACITY
        values.sort(key=lambda value: float("inf") if infinite and not value else abs(value))
    return values[0], values[-1]


def _value(option: str, value: object) -> str:
    return factor(value) if option == CAPACITY and isinstance(value, int | float) else json.dumps(value)


def _at_inference(findings: Findings, metric: Metric) -> str:
    """The smallest against the largest capacity at inference, each checkpoint with the k of its training."""
    values, drops = [], []
    lows, highs = set(), set()
    for group in findings.experts:
        for result in group.results.values():
            assert result.config is not None
            assert result.config.model.moe is not None
            rows = [row for row in result.rows if row["top_k"] == result.config.model.moe.top_k]
            rows.sort(key=lambda row: row["capacity_factor"] or float("inf"))
            if len(rows) > 1:
                values.append(metric.of_row(rows[0]) - metric.of_row(rows[-1]))
                drops.append(rows[0]["dropped_fraction"])
                lows.add(rows[0]["capacity_factor"])
                highs.add(rows[-1]["capacity_factor"])
    if not values or len(lows) > 1 or len(highs) > 1:
        return ""
    change, drop = Spread.of(values), Spread.of(drops)
    return (
        f"Capacity at inference: {at_factor(lows.pop())} instead of {at_factor(highs.pop())} drops "
        f"{drop.mean:.0%} of the choices and changes the same checkpoints by {_change(change, metric)} "
        f"({change.n} checkpoints): {verdict(change, PAIRS)}."
    )


def _priority_at_inference(findings: Findings, metric: Metric) -> str:
    """What the priority is worth at the smallest capacity at inference."""
    matched = pairs(findings.experts, PRIORITY, False, True)
    sides: list[tuple[float, dict[int, float], dict[int, float]]] = []
    for off, on in matched:
        shared = sorted({f for f, _ in off.ways().keys() & on.ways().keys() if f > 0})
        if shared:
            sides.append((shared[0], _at(off, shared[0], metric), _at(on, shared[0], metric)))
    found = [on[seed] - off[seed] for _, off, on in sides for seed in off.keys() & on.keys()]
    if not found or len({f for f, _, _ in sides}) > 1:
        return ""
    change = Spread.of(found)
    return (
        f"Priority where capacity is short: evaluated at {at_factor(sides[0][0])}, cells trained and served "
        f"with batch priority differ from those without by {_change(change, metric)} ({change.n} pairs): "
        f"{verdict(change, PAIRS)}."
    )


def _at(group: Group, capacity_factor: float, metric: Metric) -> dict[int, float]:
    """seed -> quality at a capacity, with the k of training."""
    found = {}
    for seed, result in group.results.items():
        moe = result.config.model.moe if result.config else None
        for row in result.rows:
            if moe and (row["capacity_factor"], row["top_k"]) == (capacity_factor, moe.top_k):
                found[seed] = metric.of_row(row)
    return found


def _dropped(findings: Findings) -> str:
    if not findings.experts:
        return ""
    by_drop = sorted(findings.experts, key=lambda group: _dropped_of(group).mean)
    least, most = by_drop[0], by_drop[-1]
    return (
        f"Dropped in training: from {_dropped_of(least).mean:.1%} of the choices ({least.label}) to "
        f"{_dropped_of(most).mean:.1%} ({most.label})."
    )


def _dropped_of(group: Group) -> Spread:
    return spread_of([r.summary for r in group.results.values()], lambda row: row["dropped_fraction"])
