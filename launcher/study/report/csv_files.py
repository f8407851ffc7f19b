"""The CSV files of a report, with every digit."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.study.report.charts_fit import Fitted
from launcher.study.report.charts_layers import all_curves
from launcher.study.report.charts_pareto import PRICES, Choice, best, choices
from launcher.study.report.findings import Findings, Metric
from launcher.study.report.paper import published_rows
from launcher.study.report.results import CURVES, Result

Rows = list[dict[str, Any]]
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


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; a column for every key that any of them has, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def files(findings: Findings, fits: Sequence[Fitted]) -> dict[str, str]:
    """Every CSV file of a report, by name."""
    rows = {
        "cells": [cell_row(result) for result in findings.results],
        "sweep": [row for result in findings.results for row in sweep_rows(result)],
        "layers": layer_rows(findings),
        "pareto": pareto_rows(findings),
        "published": published_rows(findings),
        "fits": [fit_row(each) for each in fits],
    }
    return {f"{name}.csv": to_csv(found) for name, found in rows.items()}


def cell_row(result: Result) -> dict[str, Any]:
    """A cell with everything that is known of it."""
    cell = result.cell
    row: dict[str, Any] = {
        "cell": cell.name,
        "seed": cell.seed,
        "state": result.state,
        "reason": result.reason,
    }
    row |= dict(cell.axes)
    if result.cost is None or result.config is None:
        return row
    moe = result.config.model.moe
    for name in ("num_experts", "top_k", "capacity_factor", "batch_prioritized", "router"):
        row[name] = getattr(moe, name) if moe else None
    row |= {"parameters": result.cost.parameters, "active_parameters": result.cost.active_parameters}
    row |= {"flops": result.cost.flops, "train_images": result.images, "train_flops": result.train_flops}
    return row | {name: result.summary[name] for name in SUMMED if name in result.summary}


def sweep_rows(result: Result) -> Iterable[dict[str, Any]]:
    """A cell's evaluations at inference."""
    for row in result.rows:
        figures = {name: row[name] for name in (*SWEPT, "flops") if name in row}
        yield {"cell": result.cell.name, "seed": result.cell.seed, **figures}


def layer_rows(findings: Findings) -> Rows:
    """The curves of the layers as they are drawn: means over seeds and over spans of steps."""
    found: dict[tuple[str, str, float], dict[str, Any]] = {}
    for figure in CURVES:
        for layer, curves in all_curves(findings.experts, figure).items():
            for label, curve in curves.items():
                for step, value in curve:
                    key = label, layer, step
                    row = found.setdefault(key, {"configuration": label, "layer": layer, "step": step})
                    row[figure] = value
    return list(found.values())


def pareto_rows(findings: Findings) -> Rows:
    """Every choice at inference, and its place on both fronts."""
    if not findings.metrics:
        return []
    metric = findings.metrics[0]
    found = choices(findings, metric)
    fronts = {price.name: best(found, metric, price) for price in PRICES}
    return [
        _choice_row(choice, metric)
        | {
            f"front_{name}": kept.index(choice) + 1 if choice in kept else None
            for name, kept in fronts.items()
        }
        for choice in found
    ]


def _choice_row(choice: Choice, metric: Metric) -> dict[str, Any]:
    return {
        "configuration": choice.group.label,
        "capacity_factor": choice.capacity_factor,
        "top_k": choice.top_k,
        metric.key: choice.quality.mean / metric.unit,
        f"{metric.key}_sd": None if choice.quality.sd is None else choice.quality.sd / metric.unit,
        "images_s": choice.images_s.mean,
        "images_s_sd": choice.images_s.sd,
        "flops": choice.flops,
        "dropped_fraction": choice.dropped_fraction,
        "seeds": choice.quality.n,
    }


def fit_row(each: Fitted) -> dict[str, Any]:
    """A law, its interval and its warnings."""
    law, interval = each.fit.law, each.fit.interval or (None, None)
    return {
        "loss_in": each.quantity.title,
        "configurations": each.family,
        "form": "c + a x^-b" if each.offset else "a x^-b",
        "a": law.a if law else None,
        "b": law.b if law else None,
        "c": law.c if law else None,
        "b_low": interval[0],
        "b_high": interval[1],
        "r2": each.fit.r2,
        "sizes": len(each.fit.x),
        "seeds": each.fit.seeds,
        "supported": each.fit.is_supported,
        "warnings": "; ".join(each.fit.warnings),
    }
