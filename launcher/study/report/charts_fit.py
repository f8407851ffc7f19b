"""Power laws of the loss in the number of experts and in the work of training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from launcher.study.report.charts import Section, seeds_text
from launcher.study.report.data import CHOICES, DENSE, EXPERTS, LOSS, ReportData, without
from launcher.study.report.drawing import Chart, Line, Scale, chart, mean_points, short
from launcher.study.report.fit import OFFSET_POINTS, LawFit, fit

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
            every.append(FamilyFit(quantity=quantity, family=family, losses=losses, fit=law, offset=offset))
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


def fit_chart(data: ReportData, every: Sequence[FamilyFit], quantity: str) -> Chart | str:
    """The loss and the laws, on logarithmic axes."""
    title, x = QUANTITIES[quantity]
    drawn = [each for each in every if each.quantity == quantity and each.fit.law and not each.offset]
    if not drawn:
        reason = next((each.fit.warnings for each in every if each.quantity == quantity), ("no trials",))
        return f"Loss in {title}: no law is fitted; {'; '.join(reason)}."
    lines = [line for i, each in enumerate(drawn[:MOST_FAMILIES]) for line in _lines(each, i)]
    caption = (
        f"Logarithmic axes, {seeds_text(data, data.settings)}. Lines are a x^-b by least squares; the table "
        "below has their exponents, intervals and warnings."
    )
    sizes = {x: short(x) for each in drawn for x in each.fit.x} if quantity == "experts" else {}
    scale = Scale(x, LOSS.label, ticks=sizes, is_log_x=True, is_log_y=True)
    return chart(f"fit-{quantity}", f"Loss by {title}", caption, lines, scale, "fits.csv")


def _lines(each: FamilyFit, style: int) -> list[Line]:
    """The means over seeds, and the law through them."""
    assert each.fit.law is not None
    label = each.family if each.family != "all" else "trials"
    means = mean_points(each.losses.columns, each.losses.agg(["mean", "std"]).T)
    x = np.geomspace(each.fit.x[0], each.fit.x[-1], 50)
    doubt = "" if each.fit.is_supported else " (see warnings)"
    law = pd.DataFrame({"x": x, "y": each.fit.law.at(x)})
    text = f"b = {each.fit.law.b:.3f}{doubt}"
    return [Line(label, means, style, "loose"), Line(text, law, style, "law")]
