"""Charts of accuracy and loss against size, work and speed."""

from launcher.study.drawing.chart import Chart, Line, Scale, chart, mean_points
from launcher.study.drawing.ticks import short
from launcher.study.report.data import QualityMetric, ReportData
from launcher.study.report.labels import CHOICES, EXPERTS
from launcher.study.report.reasons import axes
from launcher.study.report.section import Missing, Section, seeds_text

COSTS = {  # column of the trials: name of the chart, title, axis, remark, what changes it
    "active_parameters": (
        "active",
        "active parameters",
        "parameters that one token meets",
        "",
        axes(CHOICES, [1, 2]),
    ),
    "parameters": ("total", "all parameters", "parameters", "", axes(EXPERTS, [8, 16])),
    "flops": (
        "flops",
        "FLOPs",
        "multiply-adds of one image",
        "Multiply-adds of one image, dropped tokens counted too.",
        axes(CHOICES, [1, 2]),
    ),
    "images_s": (
        "speed",
        "speed in training",
        "images/s in training, all ranks",
        "As measured: whatever else the machine did then is in it.",
        "",
    ),
}


def cost_section(data: ReportData) -> Section:
    """Size, work and speed."""
    parts = [by_cost(data, metric, column) for column in COSTS for metric in data.metrics]
    return Section.of("Size, work and speed", "What accuracy and loss cost.", parts)


def by_cost(data: ReportData, metric: QualityMetric, column: str) -> Chart | Missing:
    """Quality against a cost, a point a configuration."""
    name, title, x, remark, changes = COSTS[column]
    low, high = data.trials[column].min(), data.trials[column].max()
    if data.trials[column].round(9).nunique() < 2:
        why = f"all trials have the same ({short(low)})"
        return Missing(f"{metric.title} by {title}", why, changes)
    costs, spreads = data.spreads(column), data.spreads(metric.key)
    lines = [
        Line(
            label,
            mean_points(cost["mean"], spreads.loc[members], cost["std"]),
            data.style_of(label, members),
            kind="loose",
        )
        for label, members in data.few_families().items()
        for cost in [costs.loc[members]]
    ]
    return chart(
        f"{metric.key}-{name}",
        f"{metric.title} by {title}",
        f"A point a configuration, {seeds_text(data, data.settings)}. {remark}".strip(),
        lines,
        Scale(x, metric.label, is_log_x=high > 4 * low > 0),
    )
