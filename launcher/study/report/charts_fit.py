"""Power laws of the loss in the number of experts and in the work of training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from launcher.study.drawing.chart import Chart, Line, Scale, chart, mean_points
from launcher.study.drawing.ticks import tick_texts
from launcher.study.report.data import LOSS, WORK, ReportData
from launcher.study.report.fit import FEWEST_POINTS, OFFSET_POINTS, LawFit, fit
from launcher.study.report.labels import DENSE, EXPERTS, without
from launcher.study.report.reasons import Reason, axes, no_experts, no_metric, option_values
from launcher.study.report.section import Missing, Section, left_out, seeds_text

QUANTITIES = {  # name: title, axis
    "experts": ("number of experts", "experts (dense: 1)"),
    "flops": ("FLOPs of training", "multiply-adds of training (3 x forward x images)"),
}
MOST_FAMILIES = 4  # of one chart


@dataclass(frozen=True, kw_only=True)
class FamilyFit:
    """A law in a quantity of one family of configurations."""

    quantity: str
    family: str
    members: Sequence[str]  # its configurations
    losses: pd.DataFrame  # by seed and size
    fit: LawFit
    offset: bool


def fits(data: ReportData) -> list[FamilyFit]:
    """Every law that could be fitted, supported by the data or not; none where trials have no loss."""
    if LOSS not in data.metrics:
        return []
    return [each for quantity in QUANTITIES for each in _fits_in(data, quantity)]


def _fits_in(data: ReportData, quantity: str) -> list[FamilyFit]:
    """The families that have a law; if there is none, the one of most sizes, whose fit says why."""
    every = []
    for family, members in _families(data, quantity).items():
        losses = _losses(data, members, quantity)
        for offset in (False, True)[: 1 + (losses.shape[1] >= OFFSET_POINTS)]:
            law = fit(losses, offset=offset)
            every.append(
                FamilyFit(
                    quantity=quantity, family=family, members=members, losses=losses, fit=law, offset=offset
                )
            )
    most = sorted(every, key=lambda each: -len(each.fit.x))
    return [each for each in every if each.fit.law] or most[:1]


def _families(data: ReportData, quantity: str) -> dict[str, list[str]]:
    """Configurations of one law. In the number of experts a dense model is one expert, of every family."""
    if quantity == "flops":
        return data.families(data.settings, *WORK)
    families = data.families(data.experts, EXPERTS)
    for members in families.values():
        members += [label for label in data.dense if same_but_experts(data, label, members[0])]
    return families


def same_but_experts(data: ReportData, dense: str, label: str) -> bool:
    """Whether a dense configuration is one of experts without its experts."""
    rest = {name: value for name, value in data.settings[label].items() if not name.startswith(DENSE)}
    return without(data.settings[dense], DENSE) == rest


def _losses(data: ReportData, members: Sequence[str], quantity: str) -> pd.DataFrame:
    """The losses by seed and size; the mean where configurations of one size share a seed."""
    trials = data.trials[data.trials.configuration.isin(members)]
    experts = {label: moe.num_experts if (moe := data.models[label].moe) else 1 for label in members}
    x = trials.configuration.map(experts) if quantity == "experts" else trials.train_flops
    return trials.assign(x=x.astype(float)).pivot_table(LOSS.key, "seed", "x")


def fit_section(data: ReportData, every: Sequence[FamilyFit]) -> Section:
    """Both laws."""
    text = (
        "Each seed is fitted alone; the interval of the exponent b is Student's t over the seeds, 95 %. "
        "Where the data do not support a law, the table says why: the line is a guide to the eye then, not a "
        "finding."
    )
    return Section.of("Power laws of the loss", text, [fit_chart(data, every, name) for name in QUANTITIES])


def fit_chart(data: ReportData, every: Sequence[FamilyFit], quantity: str) -> Chart | Missing:
    """The loss and the laws, on logarithmic axes."""
    title, x = QUANTITIES[quantity]
    drawn = [each for each in every if each.quantity == quantity and each.fit.law and not each.offset]
    if not drawn:
        return Missing(f"Loss by {title}", *_no_law(data, every, quantity))
    lines = [line for each in drawn[:MOST_FAMILIES] for line in _lines(data, each)]
    caption = (
        f"Logarithmic axes, {seeds_text(data, data.settings)}. Lines are a x^-b by least squares; the table "
        "below has their exponents, intervals and warnings."
    )
    caption += left_out(min(len(drawn), MOST_FAMILIES), len(drawn), "laws")
    places = sorted({x for each in drawn for x in each.fit.x}) if quantity == "experts" else []
    sizes = dict(zip(places, tick_texts(places), strict=True))
    scale = Scale(x, LOSS.label, ticks=sizes, is_log_x=True, is_log_y=True)
    return chart(f"fit-{quantity}", f"Loss by {title}", caption, lines, scale, "fits.csv")


def _no_law(data: ReportData, every: Sequence[FamilyFit], quantity: str) -> Reason:
    """Why no law is fitted, and the axis that would give more sizes."""
    if LOSS not in data.metrics:
        return no_metric(data, LOSS.key)
    tried = next((each for each in every if each.quantity == quantity), None)
    if tried is None:
        return no_experts()
    if len(tried.fit.x) >= FEWEST_POINTS:
        return Reason("; ".join(tried.fit.warnings))
    if quantity == "flops":
        return Reason(
            "; ".join(tried.fit.warnings),
            axes("train.duration", ["1 epoch", "2 epochs", "4 epochs", "8 epochs"]),
        )
    known = sorted({value for value in option_values(data, EXPERTS) if value})
    while len(known) < FEWEST_POINTS:
        known.append(2 * known[-1])
    return Reason("; ".join(tried.fit.warnings), axes(EXPERTS, known))


def _lines(data: ReportData, each: FamilyFit) -> list[Line]:
    """The means over seeds, and the law through them."""
    assert each.fit.law is not None
    label = each.family if each.family != "all" else "trials"
    means = mean_points(each.losses.columns, each.losses.agg(["mean", "std"]).T)
    x = np.geomspace(each.fit.x[0], each.fit.x[-1], 50)
    doubt = "" if each.fit.is_supported else " (see warnings)"
    law = pd.DataFrame({"x": x, "y": each.fit.law.at(x)})
    text = f"b = {each.fit.law.b:.3f}{doubt}"
    style = data.style_of(each.family, each.members)
    return [Line(label, means, style, "loose"), Line(text, law, style, "law")]
