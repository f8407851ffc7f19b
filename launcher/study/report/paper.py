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

from launcher.study.drawing.chart import Chart, Line, Scale, chart, mean_points
from launcher.study.drawing.ticks import tick_texts
from launcher.study.report.charts_fit import same_but_experts
from launcher.study.report.data import TOP1, ReportData, Spread
from launcher.study.report.labels import EXPERTS
from launcher.study.report.reasons import Reason, axes, no_dense, no_experts, no_metric, no_sweep
from launcher.study.report.section import Missing, Section, left_out, seeds_text

SOURCE = "Hwang et al. 2023, Tutel, arXiv 2206.03382"
CLASSES, SIDES, NUM_EXPERTS, LARGEST_FACTOR = range(21_000, 22_001), (192, 192), 32, 1.25
MOST_OURS = 2  # configurations in one chart
OTHER_DATA = "this study has other data or another image size than theirs (ImageNet-22K at 192 pixels)"


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
    """The rows of published.csv of a report: every published value, and ours where the two compare.

    Accuracies compare on the published data and image size alone, speeds as each on its own machine.
    """
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
    has_top1 = is_same_task(data) and TOP1.key in ours and len(ours)
    has_speed = row["figure"] == "capacity" and not pd.isna(row["images_s"]) and len(ours)
    return {
        "what": row["model"],
        "published_top1": row["top1"],
        "published_images_s": row["images_s"],
        "our_cell": label if has_top1 or has_speed else "",
        "our_top1": Spread.of(ours.top1).mean / TOP1.unit if has_top1 else None,
        "our_images_s": Spread.of(ours.images_s).mean if has_speed else None,
        "seeds": len(ours) if has_top1 or has_speed else 0,
    }


def paper_section(data: ReportData) -> Section:
    """The three published tables that have axes of this study."""
    text = (
        f"Grey dashed lines with hollow marks are published figures ({SOURCE}), not measured here; "
        "ours are the configurations nearest to theirs (k=1, capacity 1.25 in training)."
    )
    if not is_same_task(data):
        text += f" {OTHER_DATA[0].upper()}{OTHER_DATA[1:]}, so no accuracy is set beside theirs."
    parts = [accuracy_by_capacity(data), speed_by_capacity(data), accuracy_by_experts(data)]
    return Section.of("Beside the published figures", text, parts)


def accuracy_by_capacity(data: ReportData) -> Chart | Missing:
    """Change of accuracy with the capacity at inference."""
    title = "Capacity at inference, beside the published"
    if reason := _no_accuracy(data):
        return Missing(title, *reason)
    ours = _ours_by_capacity(data, TOP1.key, (1, 2))
    if not ours:
        return Missing(title, *_no_limited_sweep(data, 1))
    theirs = []
    for i, (k, rows) in enumerate(published().query("figure == 'capacity'").groupby("top_k")):
        change = TOP1.unit * (rows.top1 - rows.top1[rows.capacity_factor.idxmax()])
        points = pd.DataFrame({"x": rows.capacity_factor, "y": change})
        theirs.append(Line(f"published: SwinV2-MoE-B, E=32, k={k:g}", points, i, "published"))
    seeds = seeds_text(data, data.experts)
    return chart(
        "published-capacity",
        title,
        f"Both are drawn as the change from capacity 1.25. Ours: {seeds}, of the change. Published: {SOURCE}."
        + left_out(min(MOST_OURS, len(nearest(data))), len(nearest(data))),
        [*ours, *theirs],
        Scale("capacity factor at inference", "change of top-1 accuracy, points"),
        "published.csv",
    )


def _no_accuracy(data: ReportData) -> Reason | None:
    """Why no accuracy is set beside the published ones."""
    if not is_same_task(data):
        return Reason(f"{OTHER_DATA}, and accuracies on different data do not compare")
    return None if TOP1 in data.metrics else no_metric(data, TOP1.key)


def _no_limited_sweep(data: ReportData, top_k: int) -> Reason:
    """Why none of the configurations nearest to the published ones has a sweep over capacities above 0."""
    near = nearest(data)
    if data.experts and not near:
        return Reason(
            "no trial with experts has the router linear or cosine and a capacity in training",
            axes("model.moe.capacity_factor", [LARGEST_FACTOR]),
        )
    return no_sweep(data, near[:MOST_OURS], top_k, limited=True)


def speed_by_capacity(data: ReportData) -> Chart | Missing:
    """Speed relative to that at the largest capacity."""
    ours = _ours_by_capacity(data, "images_s", (1,))
    if not ours:
        return Missing("Speed by capacity, beside the published", *_no_limited_sweep(data, 1))
    rows = published().query("figure == 'capacity'").dropna(subset="images_s")
    speed = rows.images_s / rows.images_s[rows.capacity_factor.idxmax()]
    points = pd.DataFrame({"x": rows.capacity_factor, "y": speed})
    caption = (
        "Images/s at inference over those at capacity 1.25, k=1. Ours on this study's machine, "
        f"{seeds_text(data, data.experts)}; published on A100: {SOURCE}."
    ) + left_out(min(MOST_OURS, len(nearest(data))), len(nearest(data)))
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
                Line(
                    text,
                    mean_points(table.columns, change.agg(["mean", "std"]).T),
                    data.styles[label],
                    variant=k - choices[0],
                )
            )
    return lines


def accuracy_by_experts(data: ReportData) -> Chart | Missing:
    """Change of accuracy from the dense model with the number of experts."""
    title = "Experts, beside the published"
    if reason := _no_accuracy(data):
        return Missing(title, *reason)
    every = _ours_by_experts(data)
    if not every:
        return Missing(title, *_no_pair_with_dense(data))
    lines = every[: 2 * MOST_OURS]
    drawn = left_out(len(lines), len(every), "families")
    for i, size in enumerate("SB"):
        rows = published().query("figure == 'experts'")
        rows = rows[rows.model.str.startswith(f"SwinV2-MoE-{size}")]
        points = pd.DataFrame({"x": rows.num_experts, "y": TOP1.unit * (rows.top1 - rows.top1.iloc[0])})
        lines.append(Line(f"published: SwinV2-MoE-{size}", points, i, "published"))
    seeds, places = (
        seeds_text(data, data.settings),
        sorted({float(x) for line in lines for x in line.points.x}),
    )
    return chart(
        "published-experts",
        title,
        f"Both are drawn as the change from the dense model (1). Ours: {seeds}, of the change. Published: "
        f"{SOURCE}.{drawn}",
        lines,
        Scale(
            "experts (dense: 1)",
            "change of top-1 accuracy, points",
            ticks=dict(zip(places, tick_texts(places), strict=True)),
            is_log_x=True,
        ),
        "published.csv",
    )


def _no_pair_with_dense(data: ReportData) -> Reason:
    """Why no change from the dense model is known."""
    if not data.experts or not data.dense:
        return no_dense() if data.experts else no_experts()
    return Reason(
        "no dense trial has a seed and all other options in common with one of the configurations nearest to "
        "the published ones",
        "a dense trial that differs from them in model.moe alone",
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
        style = data.style_of(family, members)
        lines.append(Line(family if family != "all" else "ours", points, style))
    return [line for line in lines if len(line.points) > 1]
