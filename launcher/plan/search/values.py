"""What `swin-moe plan --json` writes."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launcher.plan.base.hardware import Device, Hardware
from launcher.plan.search.advice import Advice
from launcher.plan.search.candidate import Candidate
from launcher.plan.search.run_cost import Terms, price_per_million, run_cost
from launcher.plan.search.simulate import Point
from launcher.plan.time.published import RUNS

Json = dict[str, Any]


def layout_json(candidate: Candidate, hardware: Hardware, terms: Terms, advice: Sequence[Advice]) -> Json:
    """One layout, item by item."""
    time, memory = candidate.time, candidate.memory
    assert time is not None
    assert memory is not None
    return {
        "hardware": hardware.name,
        "reached": reached_json(hardware.device),
        "ranks": candidate.ranks,
        "memory": {
            "items": dict(memory.items),
            "transient": list(memory.transient),
            "peak_bytes": memory.peak_bytes,
            "host_bytes": memory.host_bytes,
            "fits": not candidate.reason,
        },
        "time": {
            "items_s": dict(time.items),
            "hidden_s": dict(time.hidden),
            "step_s": time.step_s,
            "images_s": time.images_s,
            "mfu": time.mfu,
            "cores": time.cores,
            "sample_bytes": time.sample_bytes,
            "limit": time.limit,
            "all_to_all_linear_s": time.all_to_all_linear_s,
            "all_to_all_hierarchical_s": time.all_to_all_hierarchical_s,
            "collectives": [c._asdict() for c in time.collectives],
        },
        **cost_json(candidate, terms),
        "advice": [
            {"overrides": dict(one.change.overrides), "gain": one.gain, **_speed_json(one.candidate)}
            for one in advice
        ],
    }


def cost_json(candidate: Candidate, terms: Terms) -> Json:
    """The whole run, and a million images."""
    cost = run_cost(candidate, terms)
    return {
        "price_per_million_images": price_per_million(candidate, terms),
        "run": None if cost is None else asdict(cost),
    }


def reached_json(device: Device) -> list[Json]:
    """Shares of the predicted speed that other runs reached."""
    return [one._asdict() for one in RUNS[device]]


def candidate_json(candidate: Candidate, terms: Terms) -> Json:
    """One layout of a search."""
    memory = candidate.memory
    return {
        "overrides": candidate.overrides,
        **_speed_json(candidate),
        "peak_bytes": memory.peak_bytes if memory else None,
        "reason": candidate.reason,
        **cost_json(candidate, terms),
    }


def _speed_json(candidate: Candidate) -> Json:
    time = candidate.time
    return {"images_s": time.images_s if time else None, "step_s": time.step_s if time else None}


def point_json(point: Point, terms: Terms) -> Json:
    """One number of ranks of a simulation."""
    return {
        "ranks": point.ranks,
        "global_batch_size": point.candidate.config.train.global_batch_size,
        "ep_size": point.ep_size,
        "overrides": point.candidate.overrides,
        "images_s": point.time.images_s,
        "efficiency": point.efficiency,
        "peak_bytes": point.candidate.memory.peak_bytes if point.candidate.memory else None,
        "reason": point.candidate.reason,
        "groups_s": point.time.groups,
        "all_to_all_linear_s": point.time.all_to_all_linear_s,
        "all_to_all_hierarchical_s": point.time.all_to_all_hierarchical_s,
        "hierarchical_other_way_gain": point.hops_gain,
        "rows_bytes": point.rows_bytes,
        "crossover_bytes": point.crossover_bytes,
        "mtbf_s": point.mtbf_s,
        "interval_s": point.interval_s,
        "goodput": point.goodput,
        **cost_json(point.candidate, terms),
    }
