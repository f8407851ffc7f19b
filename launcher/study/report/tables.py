"""The tables of the page, as rows of text."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.study.report.charts_fit import Fitted
from launcher.study.report.charts_pareto import PRICES, Choice, best, choices
from launcher.study.report.drawing import short
from launcher.study.report.findings import Findings, Metric
from launcher.study.report.groups import Spread
from launcher.study.report.paper import compares, published_rows


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page: columns, and rows of texts."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def pareto_tables(findings: Findings) -> list[Table]:
    """The choices on each front."""
    if not findings.metrics:
        return []
    metric = findings.metrics[0]
    found = choices(findings, metric)
    columns = (
        "#",
        "configuration",
        "at inference",
        metric.label,
        "images/s",
        "multiply-adds",
        "dropped",
        "seeds",
    )
    return [
        Table(
            name=f"On the front against {price.title}",
            columns=columns,
            rows=[_front_row(i, choice, metric) for i, choice in enumerate(best(found, metric, price), 1)],
        )
        for price in PRICES
        if found
    ]


def _front_row(i: int, choice: Choice, metric: Metric) -> list[str]:
    return [
        f"{i}",
        choice.group.label,
        choice.way,
        spread_text(choice.quality, 2 if metric.unit == 100 else 4),
        spread_text(choice.images_s, 0),
        short(choice.flops),
        f"{choice.dropped_fraction:.1%}",
        f"{choice.quality.n}",
    ]


def group_table(findings: Findings) -> Table:
    """The configurations, means and spreads over seeds."""
    columns = ["configuration", "seeds", *(metric.label for metric in findings.metrics)]
    columns += ["dropped in training", "images/s in training", "parameters", "active", "multiply-adds"]
    rows = []
    for group in findings.groups:
        cost, summaries = group.any.cost, [result.summary for result in group.results.values()]
        assert cost is not None
        quality = [spread_text(group.spread(m.of), 2 if m.unit == 100 else 4) for m in findings.metrics]
        dropped = Spread.of([100 * summary["dropped_fraction"] for summary in summaries])
        speed = Spread.of([summary["images_s"] for summary in summaries])
        sizes = [short(cost.parameters), short(cost.active_parameters), short(cost.flops)]
        first = [group.label, f"{len(summaries)}", *quality]
        rows.append([*first, f"{spread_text(dropped, 1)} %", spread_text(speed, 0), *sizes])
    return Table(name="Configurations", columns=columns, rows=rows)


def open_table(findings: Findings) -> Table:
    """The cells that are not finished, and why."""
    rows = [[r.cell.name, r.state, r.reason] for r in findings.results if r.state != "finished"]
    return Table(name="Cells that are not finished", columns=("cell", "state", "reason"), rows=rows)


def fit_table(fits: Sequence[Fitted]) -> Table:
    """The laws and their warnings."""
    columns = (
        "loss in",
        "configurations",
        "form",
        "b",
        "95 % interval of b",
        "c",
        "R²",
        "sizes",
        "seeds",
        "warnings",
    )
    return Table(name="Fits", columns=columns, rows=[_fit_texts(each) for each in fits])


def _fit_texts(each: Fitted) -> list[str]:
    law, interval = each.fit.law, each.fit.interval
    warnings = "; ".join(each.fit.warnings)
    return [
        each.quantity.title,
        each.family,
        "c + a x^-b" if each.offset else "a x^-b",
        f"{law.b:.4f}" if law else "–",
        f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "–",
        f"{law.c:.4f}" if law and each.offset else "–",
        f"{each.fit.r2:.3f}" if each.fit.r2 is not None else "–",
        f"{len(each.fit.x)}",
        f"{each.fit.seeds}",
        f"⚠ {warnings}" if warnings else "none",
    ]


def published_table(findings: Findings) -> Table:
    """Published figures, ours beside them where there are any."""
    data = "" if compares(findings) else ", other data"
    theirs = ("published for", "published top-1", "published images/s")
    columns = (*theirs, "ours", f"our top-1{data}", "our images/s")
    rows = [
        [
            row["what"],
            _percent(row["published_top1"]),
            _number(row["published_images_s"]),
            row["our_cell"] or "not in this study",
            _percent(row["our_top1"]),
            _number(row["our_images_s"]),
        ]
        for row in published_rows(findings)
    ]
    return Table(name="Published figures and ours", columns=columns, rows=rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def spread_text(spread: Spread, digits: int) -> str:
    """`62.10 ± 0.34`."""
    return f"{spread.mean:.{digits}f}" + (f" ± {spread.sd:.{digits}f}" if spread.sd is not None else "")
