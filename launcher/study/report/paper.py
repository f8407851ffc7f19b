"""The comparison with the Tutel paper: its tables, and the configurations of the study nearest to them.

All published values (published.csv) are of Hwang et al. 2023, "Tutel: Adaptive Mixture-of-Experts at Scale",
arXiv 2206.03382: SwinV2-MoE trained on ImageNet-22K at 192 pixels with batch-prioritised routing, k = 1 and a
training capacity factor of 1.25, speeds on A100; the tables of experts, of capacity and of speed in its
section on SwinV2-MoE.
"""

from importlib.resources import files
from math import log2
from typing import Any

import pandas as pd

from launcher.study.report.charts import Section, seeds_text
from launcher.study.report.charts_fit import same_but_experts
from launcher.study.report.data import EXPERTS, TOP1, ReportData, Spread
from launcher.study.report.drawing import Chart, Line, Scale, chart, mean_points

SOURCE = "Hwang et al. 2023, Tutel, arXiv 2206.03382"
CLASSES, SIDES, NUM_EXPERTS, LARGEST_FACTOR = range(21_000, 22_001), (192, 192), 32, 1.25
MOST_OURS = 2  # configurations in one chart


def published() -> pd.DataFrame:
    """The published values: top1 as a fraction of 1, images_s of one GPU."""
    with files(__package__).joinpath("published.csv").open() as file:
        return pd.read_csv(file)


def is_same_task(data: ReportData) -> bool:
    """Whether all models of the study are of the published task: ImageNet-22K at 192 pixels."""
    models = [result.config.model for result in data.results if result.config]
    return bool(models) and all(m.num_classes in CLASSES and m.image_sides == SIDES for m in models)


def nearest(data: ReportData) -> list[str]:
    """The configurations trained as the published ones, or as near as there is: k = 1, capacity 1.25."""
    moes: dict[str, Any] = {label: data.models[label].moe for label in data.experts}

    def training(label: str) -> tuple[bool, float]:
        return moes[label].top_k != 1, abs(moes[label].capacity_factor - LARGEST_FACTOR)

    def model(label: str) -> tuple[float, bool]:
        return abs(log2(moes[label].num_experts / NUM_EXPERTS)), not moes[label].batch_prioritized

    limited = [x for x, moe in moes.items() if moe.router in ("linear", "cosine") and moe.capacity_factor > 0]
    best = min(map(training, limited), default=None)
    return sorted((label for label in limited if training(label) == best), key=model)


def comparison(data: ReportData) -> pd.DataFrame:
    """The rows of published.csv of a report: every published value, and ours where there is the same."""
    return pd.DataFrame([_compared(data, row) for row in published().to_dict("records")], dtype=object)


def _compared(data: ReportData, row: dict[str, Any]) -> dict[str, Any]:
    near, ours = nearest(data), data.trials.iloc[:0]
    label = next(iter(near), None)
    if row["figure"] == "capacity" and label is not None and len(data.evaluations):
        at = data.evaluations[["configuration", "capacity_factor", "top_k"]]
        ours = data.evaluations[(at == [label, row["capacity_factor"], row["top_k"]]).all(axis=1)]
    elif row["figure"] == "experts":
        experts = {x: moe.num_experts if (moe := data.models[x].moe) else 1 for x in [*near, *data.dense]}
        label = next((x for x in data.settings if experts.get(x) == row["num_experts"]), None)
        ours = data.trials[data.trials.configuration == label]
    has_top1, has_speed = TOP1.key in ours and len(ours), row["figure"] == "capacity" and len(ours)
    return {
        "what": row["model"],
        "published_top1": row["top1"],
        "published_images_s": row["images_s"],
        "our_cell": label if len(ours) else "",
        "our_top1": Spread.of(ours.top1).mean / TOP1.unit if has_top1 else None,
        "our_images_s": Spread.of(ours.images_s).mean if has_speed else None,
        "seeds": len(ours),
    }


def paper_section(data: ReportData) -> Section:
    """The three published tables that have axes of this study."""
    text = (
        f"Grey dashed lines with hollow marks are published figures ({SOURCE}), not measured here; "
        "ours are the configurations nearest to theirs (k=1, capacity 1.25 in training)."
    )
    if is_same_task(data):
        text += " This study is of their data and image size, so the accuracies of the table compare."
    else:
        text += " Accuracies of the table do not compare: the data are other ones."
    parts = [accuracy_by_capacity(data), speed_by_capacity(data), accuracy_by_experts(data)]
    return Section.of("Beside the published figures", text, parts)


def accuracy_by_capacity(data: ReportData) -> Chart | str:
    """Change of accuracy with the capacity at inference."""
    ours = _ours_by_capacity(data, TOP1.key, (1, 2)) if TOP1 in data.metrics else []
    if not ours:
        return "Accuracy by capacity beside the published one: there is no sweep of accuracy over capacity."
    theirs = []
    for i, (k, rows) in enumerate(published().query("figure == 'capacity'").groupby("top_k")):
        change = TOP1.unit * (rows.top1 - rows.top1[rows.capacity_factor.idxmax()])
        points = pd.DataFrame({"x": rows.capacity_factor, "y": change})
        theirs.append(Line(f"published: SwinV2-MoE-B, E=32, k={k:g}", points, i, "published"))
    seeds = seeds_text(data, data.experts)
    return chart(
        "published-capacity",
        "Capacity at inference, beside the published",
        f"{_why_changes(data, 'capacity 1.25')} Ours: {seeds}, of the change. Published: {SOURCE}.",
        [*ours, *theirs],
        Scale("capacity factor at inference", "change of top-1 accuracy, points"),
        "published.csv",
    )


def speed_by_capacity(data: ReportData) -> Chart | str:
    """Speed relative to that at the largest capacity."""
    ours = _ours_by_capacity(data, "images_s", (1,))
    if not ours:
        return "Speed by capacity beside the published one: there is no sweep over capacity."
    rows = published().query("figure == 'capacity'").dropna(subset="images_s")
    speed = rows.images_s / rows.images_s[rows.capacity_factor.idxmax()]
    points = pd.DataFrame({"x": rows.capacity_factor, "y": speed})
    caption = (
        "Images/s at inference over those at capacity 1.25, k=1. Ours on this study's machine, "
        f"{seeds_text(data, data.experts)}; published on A100: {SOURCE}."
    )
    return chart(
        "published-speed",
        "Speed by capacity, beside the published",
        caption,
        [*ours, Line("published: SwinV2-MoE-B, E=32", points, 0, "published")],
        Scale("capacity factor at inference", "images/s, relative to capacity 1.25"),
        "published.csv",
    )


def _ours_by_capacity(data: ReportData, column: str, choices: tuple[int, ...]) -> list[Line]:
    """The change from capacity 1.25, or else the largest: a ratio of speeds, a difference of accuracies."""
    lines: list[Line] = []
    for label in nearest(data)[:MOST_OURS] if len(data.evaluations) else ():
        for k in choices:
            rows = data.evaluations[(data.evaluations.configuration == label) & (data.evaluations.top_k == k)]
            table = rows[rows.capacity_factor > 0].pivot(
                index="seed", columns="capacity_factor", values=column
            )
            if table.shape[1] < 2:
                continue
            base = table[LARGEST_FACTOR if LARGEST_FACTOR in table else table.columns.max()]
            change = (table.div if column == "images_s" else table.sub)(base, axis=0)[base.notna()]
            text = f"{label}, k={k} at inference" if len(choices) > 1 else label
            lines.append(
                Line(text, mean_points(table.columns, change.agg(["mean", "std"]).T), style=len(lines))
            )
    return lines


def accuracy_by_experts(data: ReportData) -> Chart | str:
    """Change of accuracy from the dense model with the number of experts."""
    ours = _ours_by_experts(data) if TOP1 in data.metrics else []
    if not ours:
        return "Accuracy by experts beside the published one: it needs a dense trial and trials with experts."
    lines = list(ours)
    for i, size in enumerate("SB"):
        rows = published().query("figure == 'experts'")
        rows = rows[rows.model.str.startswith(f"SwinV2-MoE-{size}")]
        points = pd.DataFrame({"x": rows.num_experts, "y": TOP1.unit * (rows.top1 - rows.top1.iloc[0])})
        lines.append(Line(f"published: SwinV2-MoE-{size}", points, i, "published"))
    seeds = seeds_text(data, data.settings)
    return chart(
        "published-experts",
        "Experts, beside the published",
        f"{_why_changes(data, 'the dense model (1)')} Ours: {seeds}, of the change. Published: {SOURCE}.",
        lines,
        Scale(
            "experts (dense: 1)",
            "change of top-1 accuracy, points",
            ticks={float(x): f"{x:g}" for line in lines for x in line.points.x},
            is_log_x=True,
        ),
        "published.csv",
    )


def _ours_by_experts(data: ReportData) -> list[Line]:
    near, lines = set(data.families(nearest(data), EXPERTS)), list[Line]()
    for family, members in data.families(data.experts, EXPERTS).items():
        dense = next((label for label in data.dense if same_but_experts(data, label, members[0])), None)
        if dense is None or family not in near:
            continue
        spreads = [Spread(0.0, float("nan"), 1)]
        spreads += [Spread.of(data.differences([(dense, each)], TOP1.key)) for each in members]
        experts = [moe.num_experts for each in members if (moe := data.models[each].moe)]
        points = mean_points([1, *experts], pd.DataFrame(spreads)).dropna(subset="y")
        lines.append(Line(family if family != "all" else "ours", points, style=len(lines)))
    return [line for line in lines[: 2 * MOST_OURS] if len(line.points) > 1]


def _why_changes(data: ReportData, base: str) -> str:
    if is_same_task(data):
        return f"Both are drawn as the change from {base}."
    return (
        "The published models are other ones on other data (SwinV2-MoE, ImageNet-22K), so accuracies do not "
        f"compare: both are drawn as the change from {base}."
    )
