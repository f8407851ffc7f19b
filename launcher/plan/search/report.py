"""What `swin-moe plan` says, of one layout, as lines of text."""

from collections.abc import Sequence

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.memory.estimate import Memory
from launcher.plan.memory.rank_params import bucket_of, params_of_fullest_rank
from launcher.plan.time.estimate import EXCHANGE, FEED, GATHER, OPTIMIZER, REDUCE, StepTime
from parallel.zero.options import OVERLAPPING_BUCKET

GIB = 2**30


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
