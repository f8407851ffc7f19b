"""What `swin-moe plan --json` writes."""

from typing import Any

from launcher.plan.base.hardware import Hardware
from launcher.plan.memory.estimate import Memory
from launcher.plan.search.candidate import Candidate
from launcher.plan.search.report import cost_per_million
from launcher.plan.search.simulate import Point
from launcher.plan.time.estimate import StepTime

Json = dict[str, Any]


def as_json(
    time: StepTime, memory: Memory, hardware: Hardware, ranks: int, price: float | None, advice: str
) -> Json:
    """One layout as values."""
    return {
        "hardware": hardware.name,
        "ranks": ranks,
        "memory": {
            "items": dict(memory.items),
            "transient": list(memory.transient),
            "peak_bytes": memory.peak_bytes,
            "host_bytes": memory.host_bytes,
            "fits": memory.peak_bytes <= hardware.memory_bytes,
        },
        "time": {
            "items_s": dict(time.items),
            "hidden_s": dict(time.hidden),
            "step_s": time.step_s,
            "images_s": time.images_s,
            "mfu": time.mfu,
            "cores": time.cores,
            "limit": time.limit,
            "all_to_all_linear_s": time.all_to_all_linear_s,
            "all_to_all_hierarchical_s": time.all_to_all_hierarchical_s,
            "collectives": [c._asdict() for c in time.collectives],
        },
        "cost_per_million_images": None if price is None else cost_per_million(time, ranks, price),
        "advice": advice,
    }


def candidate_json(candidate: Candidate) -> Json:
    """One layout of a search."""
    time, memory = candidate.time, candidate.memory
    return {
        "overrides": candidate.overrides,
        "images_s": time.images_s if time else None,
        "step_s": time.step_s if time else None,
        "peak_bytes": memory.peak_bytes if memory else None,
        "reason": candidate.reason,
    }


def point_json(point: Point) -> Json:
    """One number of ranks of a simulation."""
    return {
        "ranks": point.ranks,
        "ep_size": point.ep_size,
        "images_s": point.time.images_s,
        "efficiency": point.efficiency,
        "groups_s": point.time.groups,
        "all_to_all_linear_s": point.time.all_to_all_linear_s,
        "all_to_all_hierarchical_s": point.time.all_to_all_hierarchical_s,
        "rows_bytes": point.rows_bytes,
        "crossover_bytes": point.crossover_bytes,
        "mtbf_s": point.mtbf_s,
        "interval_s": point.interval_s,
        "goodput": point.goodput,
    }
