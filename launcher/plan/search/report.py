"""What `swin-moe plan` says, as lines of text and as values for JSON."""

from collections.abc import Sequence
from typing import Any

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.memory.estimate import Memory
from launcher.plan.memory.rank_params import bucket_of, params_of_fullest_rank
from launcher.plan.search.search import Candidate
from launcher.plan.search.simulate import Point
from launcher.plan.time.estimate import EXCHANGE, FEED, GATHER, OPTIMIZER, REDUCE, StepTime
from parallel.zero.options import OVERLAPPING_BUCKET

GIB = 2**30
Json = dict[str, Any]


def memory_lines(memory: Memory, hardware: Hardware) -> list[str]:
    """Every item, the peak, and whether it fits."""
    rows = [*memory.items, (f"{memory.transient[0]} (transient)", memory.transient[1])]
    spare = hardware.memory_bytes - memory.peak_bytes
    verdict = (
        f"fits, {spare / GIB:.1f} GiB spare"
        if spare >= 0
        else f"does NOT fit: {-spare / GIB:.1f} GiB too much"
    )
    host = [f"  {'host, of a rank':<34}{memory.host_bytes / GIB:9.3f} GiB"] if memory.host_bytes else []
    return [
        "memory of the rank that needs most",
        *(f"  {name:<34}{size / GIB:9.3f} GiB" for name, size in rows if size),
        f"  {'peak':<34}{memory.peak_bytes / GIB:9.3f} GiB of {hardware.memory_gib:g}: {verdict}",
        *host,
    ]


def time_lines(time: StepTime, ranks: int, price: float | None) -> list[str]:
    """Every item of a step, and what follows from the sum."""
    hidden = dict(time.hidden)
    lines = ["time of an optimizer step"]
    for name, seconds in time.items:
        beside = f", {hidden[name] * 1e3:.2f} ms more behind computing" if name in hidden else ""
        lines.append(f"  {name:<34}{seconds * 1e3:9.2f} ms {seconds / time.step_s:5.1%}{beside}")
    lines += [
        f"  {'step':<34}{time.step_s * 1e3:9.2f} ms",
        f"throughput: {time.images_s:.0f} images/s, {time.images_s / ranks:.1f} a GPU; MFU {time.mfu:.1%}; "
        f"{time.cores:.1f} host cores a GPU feed it",
    ]
    if time.all_to_all_linear_s:
        lines.append(
            f"all-to-all of the rows: linear {time.all_to_all_linear_s * 1e3:.2f} ms, hierarchical "
            f"{time.all_to_all_hierarchical_s * 1e3:.2f} ms a step"
        )
    if price is not None:
        lines.append(
            f"cost: {cost_per_million(time, ranks, price):.2f} a million images at {price:g} a GPU-hour"
        )
    return lines


def cost_per_million(time: StepTime, ranks: int, price: float) -> float:
    """Of a million images, in the currency of the price of a GPU-hour."""
    return price * ranks * 1e6 / time.images_s / 3600


def advice(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime, fits: bool) -> str:
    """What to change first."""
    if not fits:
        return _smaller(config)
    return {
        "compute": _compute,
        EXCHANGE: _exchange,
        REDUCE: _reduce,
        GATHER: _gather,
        OPTIMIZER: _optimizer,
        FEED: _feed,
    }[time.limit](config, nodes, hardware, time)


def _smaller(config: RunConfig) -> str:
    parallel = config.parallel
    if parallel.zero_stage == 0:
        return "parallel.zero_stage=1 cuts the optimizer's states over the ranks"
    if not config.model.activation_checkpoint_every:
        return "model.activation_checkpoint_every=1 computes activations again instead of keeping them"
    if parallel.zero_stage < 3:
        return f"parallel.zero_stage={parallel.zero_stage + 1}, or a smaller train.micro_batch_size"
    return "a smaller train.micro_batch_size, or parallel.offload_optimizer=true; --search tries all"


def _compute(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime) -> str:
    if config.model.activation_checkpoint_every:
        return "model.activation_checkpoint_every=0, where memory allows: a forward pass less"
    if config.train.precision == "fp32" and hardware.peak_tflops.get("bf16", 0) > hardware.peak("fp32"):
        return "train.precision=bf16"
    if not config.train.compile:
        return "train.compile=true, which fuses passes over memory (not modelled here)"
    return "more ranks; the computing itself is what is left"


def _exchange(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime) -> str:
    exchange, ep_size = config.parallel.expert_exchange, config.parallel.ep_size
    if not exchange.hierarchical and time.all_to_all_hierarchical_s < 0.95 * time.all_to_all_linear_s:
        return "parallel.expert_exchange.hierarchical=true"
    if ep_size > min(nodes) > 1:
        return f"parallel.ep_size={min(nodes)} keeps rows inside the node, where experts' memory allows"
    if exchange.overlap == 1 and hardware.device == "cuda":
        return "parallel.expert_exchange.overlap=2: one piece travels while another is computed"
    return "fewer MoE layers or a lower model.moe.capacity_factor: the rows are what travels"


def _reduce(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime) -> str:
    held = params_of_fullest_rank(config, config.parallel.dims(sum(nodes)))
    bucket = bucket_of(config, held, overlaps=True)
    if hardware.device == "cuda" and not held.uneven and bucket > OVERLAPPING_BUCKET:
        option = f"deepspeed.zero_optimization.reduce_bucket_size={OVERLAPPING_BUCKET}"
        return f"{option}: reductions start before the end"
    if config.parallel.zero_stage >= 2:
        return "parallel.zero_stage=1, where memory allows: one reduction a step, not one a micro-batch"
    return "a larger train.micro_batch_size or global batch: a reduction for more images"


def _gather(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime) -> str:
    if config.parallel.zero_stage == 3:
        return "parallel.zero_stage=2, where memory allows: parameters are not gathered layer by layer"
    return "a larger train.micro_batch_size or global batch: a gathering for more images"


def _optimizer(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime) -> str:
    if config.parallel.offload_optimizer:
        return "parallel.offload_optimizer=false, where memory allows"
    return "a larger train.global_batch_size: an update for more images"


def _feed(config: RunConfig, nodes: Sequence[int], hardware: Hardware, time: StepTime) -> str:
    return (
        f"more host cores: {hardware.cores_per_rank:g} of {hardware.img_s_core:g} images/s feed a GPU; or "
        "smaller pictures (`swin-moe shards pack --reencode`)"
    )


def search_lines(candidates: Sequence[Candidate], nodes: Sequence[int], top: int) -> list[str]:
    """The fastest layouts, then what stands in the way of others."""
    world = sum(nodes)
    fit = [c for c in candidates if c.memory and not c.reason]
    large, forbidden = [c for c in candidates if c.memory and c.reason], [c for c in candidates if not c.time]
    slower = len(candidates) - len(fit) - len(large) - len(forbidden)
    lines = [
        f"{len(candidates)} layouts: {len(fit)} fit, {len(large)} do not, {len(forbidden)} break a rule; "
        f"{slower} slower ones whose memory was not predicted"
    ]
    lines += [
        f"{'images/s':>10} {'GiB':>7} {'ep':>4} {'slices':>6} {'ZeRO':>7} {'micro':>6} {'accum':>6} ckpt"
    ]
    lines += [_row(c, world) for c in fit[:top]]
    if large:
        lines += [f"do not fit, the nearest {min(top, len(large))} of {len(large)}:"]
        lines += [f"{_row(c, world)}  {c.reason}" for c in large[:top]]
    if forbidden:
        lines += [f"break a rule, {min(top, len(forbidden))} of {len(forbidden)}:"]
        lines += [f"  ep {c.config.parallel.ep_size}: {c.reason}" for c in forbidden[:top]]
    if fit:
        lines += ["the fastest:", f"  {' '.join(fit[0].overrides)}"]
    return lines


def _row(candidate: Candidate, world: int) -> str:
    parallel, train = candidate.config.parallel, candidate.config.train
    assert candidate.time is not None
    assert candidate.memory is not None
    zero = f"{parallel.zero_stage}{'+host' if parallel.offload_optimizer else ''}"
    steps = train.global_batch_size // (train.micro_batch_size * world)
    return (
        f"{candidate.time.images_s:>10.0f} {candidate.memory.peak_bytes / GIB:>7.1f} {parallel.ep_size:>4} "
        f"{parallel.expert_tensor_parallel_size:>6} {zero:>7} {train.micro_batch_size:>6} {steps:>6} "
        f"{'yes' if candidate.config.model.activation_checkpoint_every else 'no'}"
    )


def simulation_lines(points: Sequence[Point]) -> list[str]:
    """The weak-scaling table, and where something changes."""
    head = f"{'GPUs':>6} {'ep':>4} {'images/s':>10} {'efficiency':>10} {'all-to-all':>10} {'exchange':>12} "
    lines = [head + f"{'MTBF h':>8} {'save every':>10} {'goodput':>8}"]
    for p in points:
        how = "-" if not p.rows_bytes else "hierarchical" if p.two_stages_win else "linear"
        lines.append(
            f"{p.ranks:>6} {p.ep_size:>4} {p.time.images_s:>10.0f} {p.efficiency:>10.1%} "
            f"{p.exchange_share:>10.1%} {how:>12} {p.mtbf_s / 3600:>8.1f} {p.interval_s / 60:>6.0f} min "
            f"{p.goodput:>8.1%}"
        )
    over = next((p.ranks for p in points if p.exchange_wins), None)
    two = next((p.ranks for p in points if p.two_stages_win), None)
    lines.append(
        f"the all-to-all overtakes computing {f'at {over} GPUs' if over else 'nowhere here'}; "
        f"the hierarchical exchange is faster {f'from {two} GPUs on' if two else 'nowhere here'}"
    )
    return lines


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
