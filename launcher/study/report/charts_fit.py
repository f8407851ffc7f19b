"""Power laws of the loss in the number of experts and in the work of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from launcher.study.report.charts import chart, point, section
from launcher.study.report.drawing import Line, Point, Scale, short
from launcher.study.report.findings import LOSS, Chart, Findings, Section, seeds_said
from launcher.study.report.fit import OFFSET_POINTS, Fit, fit
from launcher.study.report.groups import CHOICES, DENSE, EXPERTS, Group, Spread, families, without
from launcher.study.report.results import Result

# options that change how much work a training is, and may differ inside of one law
WORK = (
    "model.embed_dim",
    "model.depths",
    "model.num_heads",
    "model.image_size",
    "model.patch_size",
    "model.mlp_ratio",
    "model.moe.shared_expert",
    CHOICES,
    "train.duration",
    "train.global_batch_size",
)
MOST_FAMILIES = 4  # of one chart


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What the loss may follow a law in."""

    name: str
    title: str
    x: str
    value: Callable[[Result], float]
    families: Callable[[Findings], dict[str, list[Group]]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law of one family of configurations."""

    quantity: Quantity
    family: str
    groups: Sequence[Group]
    fit: Fit
    offset: bool


def _experts(result: Result) -> float:
    moe = result.config.model.moe if result.config else None
    return moe.num_experts if moe else 1


def _by_experts(findings: Findings) -> dict[str, list[Group]]:
    """Configurations that differ in the number of experts alone; a dense model is one expert, for all."""
    found = families(findings.experts, EXPERTS)
    for members in found.values():
        rest = {name: value for name, value in members[0].settings.items() if not name.startswith(DENSE)}
        members += [group for group in findings.dense if without(group.settings, DENSE) == rest]
    return found


def _by_work(findings: Findings) -> dict[str, list[Group]]:
    return families(findings.groups, *WORK)


QUANTITIES = (
    Quantity(
        name="experts",
        title="number of experts",
        x="experts (dense: 1)",
        value=_experts,
        families=_by_experts,
    ),
    Quantity(
        name="flops",
        title="FLOPs of training",
        x="multiply-adds of training (3 x forward x images)",
        value=lambda result: float(result.train_flops),
        families=_by_work,
    ),
)


def fits(findings: Findings) -> list[Fitted]:
    """Every law that could be asked for, supported by the data or not."""
    return [each for quantity in QUANTITIES for each in _fits_in(findings, quantity)]


def _fits_in(findings: Findings, quantity: Quantity) -> list[Fitted]:
    """The families that have a law; if there is none, the one of most sizes, whose fit says why."""
    found = []
    for family, groups in quantity.families(findings).items():
        losses = _losses(groups, quantity)
        sizes = {x for points in losses.values() for x in points}
        for offset in (False, True)[: 1 + (len(sizes) >= OFFSET_POINTS)]:
            law = fit(losses, offset=offset)
            found.append(Fitted(quantity=quantity, family=family, groups=groups, fit=law, offset=offset))
    most = sorted(found, key=lambda each: -len(each.fit.x))
    return [each for each in found if each.fit.law] or most[:1]


def _losses(groups: Sequence[Group], quantity: Quantity) -> dict[int, dict[float, float]]:
    """seed -> {x: loss}; the mean where configurations of one size share a seed."""
    found: dict[int, dict[float, list[float]]] = {}
    for group in groups:
        for seed, result in group.results.items():
            found.setdefault(seed, {}).setdefault(quantity.value(result), []).append(LOSS.of(result))
    return {seed: {x: float(np.mean(y)) for x, y in points.items()} for seed, points in found.items()}


def fit_chart(findings: Findings, found: Sequence[Fitted], quantity: Quantity) -> Chart | str:
    """The loss and the laws, on logarithmic axes."""
    drawn = [each for each in found if each.quantity is quantity and each.fit.law and not each.offset]
    if not drawn:
        reason = next((each.fit.warnings for each in found if each.quantity is quantity), ("no cells",))
        return f"Loss in {quantity.title}: no law is fitted; {'; '.join(reason)}."
    lines = []
    for i, each in enumerate(drawn[:MOST_FAMILIES]):
        lines.append(_points(each, i))
        lines.append(_law(each, i))
    caption = (
        f"Logarithmic axes, {seeds_said(findings.groups)}. Lines are a x^-b by least squares; the table "
        "below has their exponents, intervals and warnings."
    )
    sizes = {x: short(x) for each in drawn for x in each.fit.x} if quantity.name == "experts" else {}
    scale = Scale(x=quantity.x, y=LOSS.label, ticks=sizes, is_log_x=True, is_log_y=True)
    return chart(f"fit-{quantity.name}", f"Loss by {quantity.title}", caption, lines, scale, "fits.csv")


def _points(each: Fitted, style: int) -> Line:
    ys: dict[float, list[float]] = {}
    for points in _losses(each.groups, each.quantity).values():
        for x, y in points.items():
            ys.setdefault(x, []).append(y)
    label = each.family if each.family != "all" else "cells"
    return Line(
        label=label, style=style, kind="loose", points=[point(x, Spread.of(y)) for x, y in ys.items()]
    )


def _law(each: Fitted, style: int) -> Line:
    assert each.fit.law is not None
    x = np.geomspace(each.fit.x[0], each.fit.x[-1], 50)
    doubt = "" if each.fit.is_supported else " (see warnings)"
    points = [Point(x=float(u), y=float(v)) for u, v in zip(x, each.fit.law.at(x), strict=True)]
    return Line(label=f"b = {each.fit.law.b:.3f}{doubt}", style=style, kind="law", points=points)


def fit_section(findings: Findings, found: Sequence[Fitted]) -> Section:
    """Both laws."""
    text = (
        "Each seed is fitted alone; the interval of the exponent b is Student's t over the seeds, 95 %. "
        "Where the data do not support a law, the table says why: the line is a guide to the eye then, not a "
        "finding."
    )
    return section("Power laws of the loss", text, [fit_chart(findings, found, q) for q in QUANTITIES])
