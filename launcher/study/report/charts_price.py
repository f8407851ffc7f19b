"""The charts of accuracy and loss against what they cost: size, work and speed."""

from collections.abc import Callable
from dataclasses import dataclass

from launcher.study.report.charts import chart, name_of, point, section
from launcher.study.report.drawing import Line, Scale
from launcher.study.report.findings import Chart, Findings, Metric, Section, followed, seeds_said
from launcher.study.report.results import Result


@dataclass(frozen=True, kw_only=True)
class Against:
    """What quality is drawn against."""

    name: str
    title: str
    x: str  # of the axis
    value: Callable[[Result], float]
    remark: str = ""


def _parameters(result: Result) -> float:
    assert result.cost is not None
    return result.cost.parameters


def _active(result: Result) -> float:
    assert result.cost is not None
    return result.cost.active_parameters


def _flops(result: Result) -> float:
    assert result.cost is not None
    return result.cost.flops


AGAINST = (
    Against(
        name="active",
        title="active parameters",
        x="parameters that one token meets",
        value=_active,
    ),
    Against(name="total", title="all parameters", x="parameters", value=_parameters),
    Against(
        name="flops",
        title="FLOPs",
        x="multiply-adds of one image",
        value=_flops,
        remark="Multiply-adds of one image, dropped tokens counted too.",
    ),
    Against(
        name="speed",
        title="speed in training",
        x="images/s in training, all ranks",
        value=lambda result: float(result.summary["images_s"]),
        remark="As measured: whatever else the machine did then is in it.",
    ),
)


def against(findings: Findings, metric: Metric, axis: Against) -> Chart | str:
    """Quality against a price, a point a configuration."""
    xs = {round(axis.value(result), 9) for group in findings.groups for result in group.results.values()}
    if len(xs) < 2:
        return f"{metric.label} against {axis.title}: all cells have the same, so there is no chart."
    lines = [
        Line(
            label=label,
            style=i,
            kind="loose",
            points=[
                point(group.spread(axis.value).mean, group.spread(metric.of), group.spread(axis.value).sd)
                for group in members
            ],
        )
        for i, (label, members) in enumerate(followed(findings.groups).items())
    ]
    return chart(
        f"{metric.key}-{axis.name}",
        f"{name_of(metric)} by {axis.title}",
        f"A point a configuration, {seeds_said(findings.groups)}. {axis.remark}".strip(),
        lines,
        Scale(x=axis.x, y=metric.label, is_log_x=max(xs) > 4 * min(xs) > 0),
    )


def price_section(findings: Findings) -> Section:
    """Size, work and speed."""
    found = [against(findings, metric, axis) for axis in AGAINST for metric in findings.metrics]
    return section("Size, work and speed", "What accuracy and loss cost.", found)
