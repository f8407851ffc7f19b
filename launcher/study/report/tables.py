"""The CSV files of a report, with every digit, and the tables of the page, as rows of text."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from launcher.study.drawing.ticks import short
from launcher.study.report.charts_fit import QUANTITIES, FamilyFit
from launcher.study.report.charts_pareto import PRICES
from launcher.study.report.data import QualityMetric, ReportData, Spread, primary_metric
from launcher.study.report.paper import is_same_task
from launcher.study.report.results import TrialResult

SWEPT = (
    "capacity_factor",
    "top_k",
    "top1",
    "top5",
    "loss",
    "dropped_fraction",
    "images_s",
    "images",
    "ranks",
)
SUMMED = ("top1", "top5", "loss", "images_s", "dropped_fraction", "steps", "wall_s", "world_size")
LONG = 40  # letters from which a cell of a table may break its line


class Table(NamedTuple):
    """A table of the page: columns, and rows of texts."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_folded: bool = False

    @property
    def kinds(self) -> list[str]:
        """The class of each column: numbers are aligned to the right, long texts break."""
        return [_kind([row[i] for row in self.rows]) for i in range(len(self.columns))]


def csv_files(
    data: ReportData,
    *,
    layers: pd.DataFrame,
    choices: pd.DataFrame,
    compared: pd.DataFrame,
    fits: Sequence[FamilyFit],
) -> dict[str, str]:
    """Every CSV file of a report, by name.

    Args:
        data: of the report.
        layers: of `charts.layer_curves`.
        choices: of `charts_pareto.choices`.
        compared: of `paper.comparison`.
        fits: of `charts_fit.fits`.
    """
    metrics = [name for m in data.metrics[:1] for name in (m.key, f"{m.key}_sd")]
    stored = {name: choices[name] / data.metrics[0].unit for name in metrics if name in choices}
    frames = {
        "cells": _frame(_trial_row(result) for result in data.results),
        "sweep": _frame(row for result in data.results for row in _sweep_rows(result)),
        "layers": layers,
        "pareto": choices.assign(**stored).drop(columns="at", errors="ignore"),
        "published": compared,
        "fits": _frame(_fit_row(each) for each in fits),
    }
    return {f"{name}.csv": frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows with a column for every key that any of them has; values are written as they are."""
    return pd.DataFrame(list(rows), dtype=object)


def _trial_row(result: TrialResult) -> dict[str, Any]:
    trial, config, cost = result.trial, result.config, result.cost
    row = {
        "cell": trial.name,
        "seed": trial.seed,
        "state": result.state,
        "reason": result.reason,
        **trial.axes,
    }
    if cost is None or config is None:
        return row
    for name in ("num_experts", "top_k", "capacity_factor", "batch_prioritized", "router"):
        row[name] = getattr(config.model.moe, name, None)
    row |= cost._asdict() | {"train_images": result.images, "train_flops": result.train_flops}
    names = dict.fromkeys((primary_metric(result.summary).key, *SUMMED))
    return row | {name: result.summary[name] for name in names if name in result.summary}


def _sweep_rows(result: TrialResult) -> Iterable[dict[str, Any]]:
    for row in result.evaluations:
        names = dict.fromkeys((*SWEPT, primary_metric(result.summary).key, "flops"))
        values = {name: row[name] for name in names if name in row}
        yield {"cell": result.trial.name, "seed": result.trial.seed, **values}


def _fit_row(each: FamilyFit) -> dict[str, Any]:
    law, interval = each.fit.law, each.fit.interval or (None, None)
    return {
        "loss_in": QUANTITIES[each.quantity][0],
        "configurations": each.family,
        "form": _form(each),
        **{name: getattr(law, name, None) for name in "abc"},
        "b_low": interval[0],
        "b_high": interval[1],
        "r2": each.fit.r2,
        "sizes": len(each.fit.x),
        "seeds": each.fit.seeds,
        "supported": each.fit.is_supported,
        "warnings": "; ".join(each.fit.warnings),
    }


def _form(each: FamilyFit) -> str:
    return "c + a x^-b" if each.offset else "a x^-b"


def group_table(data: ReportData) -> Table:
    """The configurations, means and spreads over seeds."""
    columns = ["configuration", "seeds", *(metric.label for metric in data.metrics), "dropped in training"]
    columns += ["images/s in training", "parameters", "active", "multiply-adds"]
    rows = []
    for label, trials in data.trials.groupby("configuration", sort=False):
        quality = [Spread.of(trials[metric.key]).text(metric.digits) for metric in data.metrics]
        dropped = Spread.of(100 * trials.dropped_fraction).text(1)
        sizes = [short(trials[name].iloc[0]) for name in ("parameters", "active_parameters", "flops")]
        speed = Spread.of(trials.images_s).text(0)
        rows.append([str(label), f"{len(trials)}", *quality, f"{dropped} %", speed, *sizes])
    return Table("Configurations", columns, rows)


def open_table(data: ReportData) -> Table:
    """The trials that are not finished, and why."""
    rows = [[r.trial.name, r.state, r.reason] for r in data.results if r.state != "finished"]
    return Table("Trials that are not finished", ("trial", "state", "reason"), rows)


def pareto_tables(data: ReportData, choices: pd.DataFrame) -> list[Table]:
    """The choices on each front."""
    if choices.empty:
        return []
    metric, tables = data.metrics[0], []
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
    for price in PRICES:
        kept = choices.dropna(subset=f"front_{price.name}").sort_values(f"front_{price.name}")
        rows = [_front_row(i, row, metric) for i, row in enumerate(kept.to_dict("records"), 1)]
        tables.append(Table(f"On the front against {price.title}", columns, rows))
    return tables


def _front_row(i: int, row: dict[Any, Any], metric: QualityMetric) -> list[str]:
    quality, speed = (
        Spread(row[name], row[f"{name}_sd"], row["seeds"]).text(digits)
        for name, digits in ((metric.key, metric.digits), ("images_s", 0))
    )
    cost = [short(row["flops"]), f"{row['dropped_fraction']:.1%}", f"{row['seeds']}"]
    return [f"{i}", row["configuration"], row["at"], quality, speed, *cost]


def fit_table(fits: Sequence[FamilyFit]) -> Table:
    """The laws and their warnings."""
    columns = ("loss in", "configurations", "form", "b", "95 % interval of b", "c")
    return Table("Fits", (*columns, "R²", "sizes", "seeds", "warnings"), [_fit_texts(each) for each in fits])


def _fit_texts(each: FamilyFit) -> list[str]:
    law, interval, r2 = each.fit.law, each.fit.interval, each.fit.r2
    return [
        QUANTITIES[each.quantity][0],
        each.family,
        _form(each),
        f"{law.b:.4f}" if law else "–",
        f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "–",
        f"{law.c:.4f}" if law and each.offset else "–",
        f"{r2:.3f}" if r2 is not None else "–",
        f"{len(each.fit.x)}",
        f"{each.fit.seeds}",
        f"⚠ {'; '.join(each.fit.warnings)}" if each.fit.warnings else "none",
    ]


def published_tables(data: ReportData, compared: pd.DataFrame) -> list[Table]:
    """The published values of `paper.comparison` that ours compare to, and folded all others."""
    has_accuracy = is_same_task(data)
    matching, others = [], []
    for row in compared.to_dict("records"):
        top1, speed = _text(row["published_top1"], ".1%"), _text(row["published_images_s"], ".0f")
        if not row["our_cell"]:
            others.append([row["what"], top1, speed])
            continue
        accuracy = [top1, _text(row["our_top1"], ".1%")] if has_accuracy else []
        matching.append([row["what"], row["our_cell"], *accuracy, speed, _text(row["our_images_s"], ".0f")])
    columns = ["published for", "ours", *(["published top-1", "our top-1"] if has_accuracy else [])]
    columns += ["published images/s, one A100", "our images/s, all ranks"]
    rest = f"{len(others)} published figures that nothing in this study compares to"
    return [
        Table("Published figures and ours", columns, matching),
        Table(rest, ["published for", "top-1 on ImageNet-22K", "images/s"], others, is_folded=True),
    ]


def _text(value: float | None, form: str) -> str:
    return "–" if pd.isna(value) else f"{value:{form}}"


def _kind(texts: Sequence[str]) -> str:
    if max(map(len, texts), default=0) > LONG:
        return "long"
    is_number = all(text == "–" or text.lstrip("-+")[:1].isdigit() for text in texts)
    return "number" if is_number else ""
