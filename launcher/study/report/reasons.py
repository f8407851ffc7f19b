"""Why something is missing from a report, and which option of the study's file would add it."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from launcher.study.report.data import ReportData
from launcher.study.report.labels import CAPACITY, DENSE, EXPERTS, factor, option

FEWEST_FACTORS = 2  # of a sweep
SUGGESTED_FACTORS, SUGGESTED_EXPERTS = (0.5, 1.25), (8, 16)
UNSWEPT = ("soft", "expert_choice")  # routers that no sweep over capacity and top_k covers
AGAIN = "`swin-moe study run` with the same file, which makes what is missing"


class Reason(NamedTuple):
    """Why, and what would add it."""

    why: str
    add: str = ""


def axes(option: str, values: Iterable[Any]) -> str:
    """What adds an axis: `axes: {model.moe.top_k: [1, 2]}`."""
    return f"`axes: {{{option}: {json.dumps(list(values))}}}`"


def no_experts() -> Reason:
    """No trial has experts."""
    return Reason("no trained trial has experts", axes(EXPERTS, SUGGESTED_EXPERTS))


def no_dense() -> Reason:
    """No trial is dense."""
    return Reason("no trained trial is without experts", f"`include: [{{{DENSE}: null}}]`")


def no_metric(data: ReportData, name: str) -> Reason:
    """Not all trials, or none, have a metric."""
    lacking = [r.trial.name for r in data.results if r.is_trained and name not in r.summary]
    trained = sum(result.is_trained for result in data.results)
    if len(lacking) == trained:
        return Reason(f"the trials' task does not measure {name}")
    return Reason(f"{len(lacking)} of {trained} trained trials have no {name} ({lacking[0]})")


def no_two_values(data: ReportData, name: str, suggested: Sequence[Any]) -> Reason:
    """Trials with experts do not differ in an option, or not in it alone."""
    if not data.experts:
        return no_experts()
    values = {json.dumps(value): value for value in option_values(data, name)}
    if len(values) < 2:
        only = next(iter(values.values()), None)
        both = dict.fromkeys([*([only] if only is not None else []), *suggested])
        add = axes(name, both) if len(both) > 1 else f"another value of {name} to `axes`"
        return Reason(f"all trials with experts have {name}={json.dumps(only)}", add)
    return Reason(
        f"no two trained trials of one seed differ in {name} alone",
        f"trials that have {' and '.join(list(values)[:2])} and all other options the same",
    )


def option_values(data: ReportData, name: str) -> list[Any]:
    """The values of an option in the trained trials with experts."""
    experts = [r.config for r in data.results if r.is_trained and r.config and r.config.model.moe is not None]
    return [option(config, name) for config in experts]


def no_sweep(
    data: ReportData, labels: Sequence[str], top_k: int | None = None, *, limited: bool = False
) -> Reason:
    """Why these configurations have no sweep over capacity at inference.

    Args:
        data: of the report.
        labels: configurations with experts.
        top_k: choices of a token at inference; None: those of training.
        limited: whether dropless (0) is no capacity of the sweep.
    """
    if not labels:
        return no_experts()
    if all((moe := data.models[each].moe) and moe.router in UNSWEPT for each in labels):
        return Reason(
            f"routers {' and '.join(UNSWEPT)} are evaluated at one capacity",
            axes("model.moe.router", ["linear"]),
        )
    rows = data.evaluations[data.evaluations.configuration.isin(labels)]
    if rows.empty:
        return Reason("no checkpoint of a trial with experts is evaluated", AGAIN)
    at_k = rows[rows.top_k == (rows.trained_top_k if top_k is None else top_k)]
    if at_k.empty:
        return _no_choices(data, sorted(set(rows.top_k)), top_k)
    every = sorted(set(at_k.capacity_factor))
    factors = [each for each in every if each > 0 or not limited]
    if len(factors) < FEWEST_FACTORS:
        text = f"capacity_factors: {json.dumps(sorted({*every, *SUGGESTED_FACTORS}))}"
        with_k = "" if top_k is None else f" with k={top_k}"
        two = "two capacities above 0" if limited else "two capacities"
        return Reason(
            f"checkpoints are not evaluated at {two}{with_k} (only {' and '.join(map(factor, every))})",
            f"`{text}` in `evaluate` of the study's file",
        )
    return Reason("no checkpoint is evaluated at two capacities", AGAIN)


def _no_choices(data: ReportData, evaluated: list[int], top_k: int | None) -> Reason:
    """Nothing was evaluated with a number of choices."""
    shown = ", ".join(map(str, evaluated))
    if top_k is None:
        return Reason(
            f"no checkpoint is evaluated with the k of its training (only with k={shown})",
            "that k to `top_k` in `evaluate` of the study's file",
        )
    if top_k in data.study.top_k:
        return Reason(f"nothing is evaluated with k={top_k} yet", AGAIN)
    text = f"top_k: {json.dumps(sorted({*evaluated, top_k}))}"
    return Reason(
        f"nothing is evaluated with k={top_k} (only with k={shown})",
        f"`{text}` in `evaluate` of the study's file",
    )


def no_capacity_axis(data: ReportData) -> Reason:
    """Trials do not differ in the capacity of training alone."""
    return no_two_values(data, CAPACITY, SUGGESTED_FACTORS)
