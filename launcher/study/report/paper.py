"""What of a study stands beside the published figures: whether it compares, and which cells are nearest."""

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

from launcher.study.report import published
from launcher.study.report.findings import Findings
from launcher.study.report.groups import Group, Spread

IMAGENET_22K_CLASSES, PUBLISHED_SIDES, PUBLISHED_EXPERTS = range(21_000, 22_001), (192, 192), 32
Row = Mapping[str, Any]


def compares(findings: Findings) -> bool:
    """Whether our accuracies are of the published task: ImageNet-22K at 192 pixels."""
    models = [result.config.model for result in findings.results if result.config]
    return bool(models) and all(
        model.num_classes in IMAGENET_22K_CLASSES and model.image_sides == PUBLISHED_SIDES for model in models
    )


def nearest_to_published(findings: Findings) -> list[Group]:
    """Our configurations that were trained as theirs, or as near as there is: k = 1, capacity 1.25."""
    linear = [g for g in findings.experts if moe_of(g).router in ("linear", "cosine")]
    limited = [g for g in linear if moe_of(g).capacity_factor > 0]
    near = min(map(_far, limited), default=None)
    return sorted(filter(lambda g: _far(g) == near, limited), key=_unlike)


def _far(group: Group) -> tuple[bool, float]:
    """How far the training is from theirs."""
    moe = moe_of(group)
    return moe.top_k != 1, abs(moe.capacity_factor - published.LARGEST_FACTOR)


def _unlike(group: Group) -> tuple[float, bool]:
    """How far the model is from theirs."""
    moe = moe_of(group)
    return abs(log2(moe.num_experts / PUBLISHED_EXPERTS)), not moe.batch_prioritized


def moe_of(group: Group) -> Any:
    """The experts' options of a configuration."""
    assert group.any.config is not None
    return group.any.config.model.moe


def published_rows(findings: Findings) -> list[dict[str, Any]]:
    """Every published figure, and ours where a cell was evaluated or trained at the same place."""
    near = next(iter(nearest_to_published(findings)), None)
    rows: list[dict[str, Any]] = []
    for at in published.CAPACITIES:
        ours = [
            row
            for row in _rows_of(near)
            if (row["capacity_factor"], row["top_k"]) == (at.capacity_factor, at.top_k)
        ]
        figures = {"published_top1": at.top1, "published_images_s": at.images_s}
        what = f"SwinV2-MoE-B, E=32, inference f={at.capacity_factor:g} k={at.top_k}"
        rows.append({"what": what, **figures, **_ours(near, ours)})
    for each in published.EXPERTS:
        model = f"SwinV2-MoE-{each.size}, " + (f"E={each.num_experts}" if each.num_experts > 1 else "dense")
        groups = [g for g in findings.groups if _num_experts(g) == each.num_experts]
        group = next((g for g in groups if g.is_dense or g in nearest_to_published(findings)), None)
        summaries: list[Row] = [r.summary for r in group.results.values()] if group else []
        rows.append(
            {
                "what": model,
                "published_top1": each.top1,
                "published_images_s": None,
                **_ours(group, summaries, speed=False),
            }
        )
    for speed in published.SPEEDS:
        what = f"SwinV2-MoE-B, E=32, training on {speed.gpus} A100, a GPU"
        rows.append(
            {"what": what, "published_top1": None, "published_images_s": speed.images_s, **_ours(None, [])}
        )
    return rows


def _rows_of(group: Group | None) -> list[Row]:
    return [row for result in group.results.values() for row in result.rows] if group else []


def _num_experts(group: Group) -> int:
    return 1 if group.is_dense else int(moe_of(group).num_experts)


def _ours(group: Group | None, rows: Sequence[Row], *, speed: bool = True) -> dict[str, Any]:
    top1 = [row["top1"] for row in rows if "top1" in row]
    images_s = [row["images_s"] for row in rows] if speed else []
    return {
        "our_cell": group.label if group and rows else "",
        "our_top1": Spread.of(top1).mean if top1 else None,
        "our_images_s": Spread.of(images_s).mean if images_s else None,
        "seeds": len(rows),
    }
