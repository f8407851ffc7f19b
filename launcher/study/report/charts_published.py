"""Ours beside what was published, on the axes of the Tutel paper's tables."""

from collections.abc import Callable, Mapping, Sequence

from launcher.study.report import published
from launcher.study.report.charts import chart, point, section
from launcher.study.report.drawing import Line, Point, Scale
from launcher.study.report.findings import TOP1, Chart, Findings, Section, seeds_said
from launcher.study.report.groups import EXPERTS, Group, Spread, families, without
from launcher.study.report.paper import Row, compares, moe_of, nearest_to_published

MOST_OURS = 2  # configurations in one chart


def _why_changes(findings: Findings, base: str) -> str:
    if compares(findings):
        return f"Both are drawn as the change from {base}."
    return (
        "The published models are other ones on other data (SwinV2-MoE, ImageNet-22K), so accuracies do not "
        f"compare: both are drawn as the change from {base}."
    )


def by_seed(group: Group, top_k: int) -> list[dict[float, Row]]:
    """Each seed's evaluations with so many choices, by capacity factor, dropless left out."""
    return [
        {
            row["capacity_factor"]: row
            for row in result.rows
            if row["top_k"] == top_k and row["capacity_factor"] > 0
        }
        for result in group.results.values()
    ]


def changes(
    sweeps: Sequence[Mapping[float, Row]], change: Callable[[Row, Row], float], base: float
) -> dict[float, Spread]:
    """How much every capacity differs from `base`, seed by seed, and the spread of that over seeds."""
    found: dict[float, list[float]] = {}
    for rows in sweeps:
        for factor, row in rows.items() if base in rows else ():
            found.setdefault(factor, []).append(change(row, rows[base]))
    return {factor: Spread.of(values) for factor, values in sorted(found.items())}


def base_factor(sweeps: Sequence[Mapping[float, Row]]) -> float | None:
    """What changes are counted from: 1.25 as published if it was evaluated, else the largest capacity."""
    there = {factor for rows in sweeps for factor in rows}
    return published.LARGEST_FACTOR if published.LARGEST_FACTOR in there else max(there, default=None)


def ours_at_capacity(
    findings: Findings, change: Callable[[Row, Row], float], choices: Sequence[int]
) -> list[Line]:
    """Our lines against the capacity at inference."""
    lines: list[Line] = []
    for group in nearest_to_published(findings)[:MOST_OURS]:
        for top_k in choices:
            sweeps = by_seed(group, top_k)
            base = base_factor(sweeps)
            found = changes(sweeps, change, base) if base else {}
            if len(found) > 1:
                label = f"{group.label}, k={top_k} at inference" if len(choices) > 1 else group.label
                points = [point(factor, spread) for factor, spread in found.items()]
                lines.append(Line(label=label, style=len(lines), points=points))
    return lines


def accuracy_at_capacity(findings: Findings) -> Chart | str:
    """Change of accuracy with the capacity at inference."""
    ours = ours_at_capacity(
        findings, lambda row, base: 100 * (row["top1"] - base["top1"]) if "top1" in row else 0.0, (1, 2)
    )
    if not ours or TOP1 not in findings.metrics:
        return "Accuracy by capacity beside the published one: there is no sweep of accuracy over capacity."
    theirs = []
    for i, top_k in enumerate((1, 2)):
        rows = [row for row in published.CAPACITIES if row.top_k == top_k]
        best = max(rows, key=lambda row: row.capacity_factor).top1
        points = [Point(x=row.capacity_factor, y=100 * (row.top1 - best)) for row in rows]
        label = f"published: SwinV2-MoE-B, E=32, k={top_k}"
        theirs.append(Line(label=label, style=i, kind="published", points=points))
    caption = (
        f"{_why_changes(findings, 'capacity 1.25')} Ours: {seeds_said(findings.experts)}, of the change."
    )
    return chart(
        "published-capacity",
        "Capacity at inference, beside the published",
        f"{caption} Published: {published.SOURCE}.",
        [*ours, *theirs],
        Scale(x="capacity factor at inference", y="change of top-1 accuracy, points"),
        "published.csv",
    )


def speed_at_capacity(findings: Findings) -> Chart | str:
    """How much faster a smaller capacity is."""
    ours = ours_at_capacity(findings, lambda row, base: row["images_s"] / base["images_s"], (1,))
    if not ours:
        return "Speed by capacity beside the published one: there is no sweep over capacity."
    rows = [row for row in published.CAPACITIES if row.images_s]
    base = max(rows, key=lambda row: row.capacity_factor).images_s or 1.0
    points = [Point(x=row.capacity_factor, y=(row.images_s or 0.0) / base) for row in rows]
    theirs = Line(label="published: SwinV2-MoE-B, E=32", style=0, kind="published", points=points)
    caption = (
        f"Images/s at inference over those at capacity 1.25, k=1. Ours on this study's machine, "
        f"{seeds_said(findings.experts)}; published on {published.SPEED_DEVICE}: {published.SOURCE}."
    )
    scale = Scale(x="capacity factor at inference", y="images/s, relative to capacity 1.25")
    return chart(
        "published-speed",
        "Speed by capacity, beside the published",
        caption,
        [*ours, theirs],
        scale,
        "published.csv",
    )


def accuracy_by_experts(findings: Findings) -> Chart | str:
    """Change of accuracy from the dense model with the number of experts."""
    ours = [line for line in _ours_by_experts(findings) if len(line.points) > 1]
    if not ours or TOP1 not in findings.metrics:
        return "Accuracy by experts beside the published one: it needs a dense cell and cells with experts."
    lines = list(ours)
    for i, size in enumerate(("S", "B")):
        rows = [row for row in published.EXPERTS if row.size == size]
        points = [Point(x=row.num_experts, y=100 * (row.top1 - rows[0].top1)) for row in rows]
        lines.append(Line(label=f"published: SwinV2-MoE-{size}", style=i, kind="published", points=points))
    marks = {float(p.x): f"{p.x:g}" for line in lines for p in line.points}
    caption = (
        f"{_why_changes(findings, 'the dense model (1)')} Ours: {seeds_said(findings.groups)}, of the change."
    )
    return chart(
        "published-experts",
        "Experts, beside the published",
        f"{caption} Published: {published.SOURCE}.",
        lines,
        Scale(x="experts (dense: 1)", y="change of top-1 accuracy, points", ticks=marks, is_log_x=True),
        "published.csv",
    )


def _ours_by_experts(findings: Findings) -> list[Line]:
    near = [without(group.settings, EXPERTS) for group in nearest_to_published(findings)]
    lines: list[Line] = []
    for label, members in families(findings.experts, EXPERTS).items():
        dense = next((g for g in findings.dense if _same_but_experts(g, members[0])), None)
        if dense is None or without(members[0].settings, EXPERTS) not in near:
            continue
        points = [Point(x=1, y=0.0)]
        for group in members:
            values = [
                TOP1.of(group.results[seed]) - TOP1.of(dense.results[seed])
                for seed in group.results.keys() & dense.results.keys()
                if "top1" in group.results[seed].summary
            ]
            if values:
                points.append(point(moe_of(group).num_experts, Spread.of(values)))
        lines.append(Line(label=label if label != "all" else "ours", style=len(lines), points=points))
    return lines[: 2 * MOST_OURS]


def _same_but_experts(dense: Group, group: Group) -> bool:
    return without(dense.settings, "model.moe") == {
        name: value for name, value in group.settings.items() if not name.startswith("model.moe")
    }


def published_section(findings: Findings) -> Section:
    """Everything that was published on axes that this study has too."""
    text = (
        f"Grey dashed lines with hollow marks are published figures ({published.SOURCE}), not measured here; "
        "ours are the configurations nearest to theirs (k=1, capacity 1.25 in training)."
    )
    if compares(findings):
        text += " This study is of their data and image size, so the accuracies of the table compare."
    else:
        text += " Accuracies of the table do not compare: the data are other ones."
    found = [accuracy_at_capacity(findings), speed_at_capacity(findings), accuracy_by_experts(findings)]
    return section("Beside the published figures", text, found)
