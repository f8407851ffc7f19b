"""How long a training step takes, item by item, and what limits it. See docs/planner_time.md."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.base.trace import TracedOp
from launcher.plan.time.compute_cost import EXPERTS, ComputeCost, compute_cost
from launcher.plan.time.links import all_reduce_s, gather_s, hierarchical_s, linear_s
from launcher.plan.time.roofline import WIDTHS, ops_s
from launcher.plan.time.traffic import Collective, accumulation, expert_parameters, traffic
from launcher.plan.time.workload import Workload
from launcher.tasks.registry import planning_of
from parallel.ranks.dims import ParallelDims

ADAM_BYTES = 28  # read parameter, gradient and two moments, write parameter and moments, fp32
EMA_BYTES = 12
OPTIMIZER, FEED, EXCHANGE, REDUCE, GATHER = "optimizer", "data feed", "all-to-all", "gradients", "parameters"
HOOKS = "hooks of ZeRO 3"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One optimizer step of a layout on a hardware; seconds."""

    items: tuple[tuple[str, float], ...]  # that the step waits for, compute by stage first
    hidden: tuple[tuple[str, float], ...]  # collectives behind computing
    step_s: float
    images_s: float  # of all ranks
    mfu: float  # of multiply-adds of every view, forward and backward, over the peak of all ranks
    cores: float  # of a node's processors for a rank, that feed it at this speed
    sample_bytes: int  # of a decoded sample, as it goes from the host to the device
    all_to_all_linear_s: float  # of a step, the rows alone
    all_to_all_hierarchical_s: float
    collectives: tuple[Collective, ...]

    @property
    def groups(self) -> dict[str, float]:
        """Seconds of compute, all-to-all, gradients, parameters, hooks, optimizer and data feed."""
        names = (EXCHANGE, REDUCE, GATHER, HOOKS, OPTIMIZER, FEED)
        others = {name: seconds for name, seconds in self.items if name in names}
        compute = sum(seconds for name, seconds in self.items if name not in names)
        return {"compute": compute, **others}

    @property
    def limit(self) -> str:
        """Where most of the time goes."""
        return max(self.groups, key=lambda name: self.groups[name])


def predict_time(
    config: RunConfig, nodes: Sequence[int], hardware: Hardware, cost: ComputeCost | None = None
) -> StepTime:
    """Predict a step.

    Args:
        config: valid for so many ranks: see launcher/validation/rules.py.
        nodes: ranks of each node, such as [8, 8].
        hardware: of every rank.
        cost: `compute_cost(config, hardware)`, where several layouts are compared.

    Raises:
        LayoutError: the experts do not divide over the ranks.
        ConfigError: the hardware does not know the precision.
    """
    cost = cost or compute_cost(config, hardware)
    dims, work = config.parallel.dims(sum(nodes)), cost.work
    compute = cost.compute_s(config, dims)
    collectives = traffic(config, nodes, work, overlaps=hardware.device == "cuda")
    exposed, hidden = _exposed(config, hardware, collectives, compute)
    optimizer = optimizer_s(config, dims, hardware, work)
    items = {name: seconds for name, seconds in compute.items() if seconds}
    exposed[HOOKS] = cost.hooks_s(config, dims, sum(compute.values()))
    items |= {name: seconds for name, seconds in exposed.items() if seconds} | {OPTIMIZER: optimizer}
    busy = sum(items.values())
    per_rank = config.train.global_batch_size / dims.world_size
    core_s = sample_core_s(config, hardware)
    feed_s = per_rank * core_s / hardware.cores_per_rank
    items[FEED] = max(0.0, feed_s - busy)  # it works ahead: only what is longer than the rest is waited for
    step_s = sum(items.values())
    images_s = config.train.global_batch_size / step_s
    # forward and backward; forward
    flops = (6 * work.views * cost.multiply_adds + 2 * cost.teacher_multiply_adds) * images_s
    both = [_rows_s(hardware, collectives, two_stages=two) for two in (False, True)]
    return StepTime(
        items=tuple(items.items()),
        hidden=tuple((name, seconds) for name, seconds in hidden.items() if seconds),
        step_s=step_s,
        images_s=images_s,
        mfu=flops / (hardware.peak(config.train.precision) * dims.world_size),
        cores=images_s / dims.world_size * core_s,
        sample_bytes=sample_bytes(config),
        all_to_all_linear_s=both[0],
        all_to_all_hierarchical_s=both[1],
        collectives=tuple(collectives),
    )


def sample_core_s(config: RunConfig, hardware: Hardware) -> float:
    """Seconds of one core of the host to decode and crop a sample."""
    decoding = planning_of(config).decoding
    return (decoding(config) if decoding else 1.0) / hardware.img_s_core


def sample_bytes(config: RunConfig) -> int:
    """Bytes of the tensors of a sample, as they lie on the host."""
    with torch.device("meta"):
        return sum(tensor.nbytes for tensor in planning_of(config).members(config, 1).values())


def optimizer_s(config: RunConfig, dims: ParallelDims, hardware: Hardware, work: Workload) -> float:
    """Seconds of accumulating, clipping and the update."""
    stage, width = config.parallel.zero_stage, WIDTHS[config.train.precision].gradient
    counts = (
        (float(work.dense_parameters), dims.world_size),
        (expert_parameters(config, dims, work), dims.dp_size),
    )
    steps = accumulation(config, dims)
    total = 0.0
    for count, holders in counts:
        own = count / (holders if stage else 1)
        reduced = steps if stage >= 2 else 1
        whole_bytes = count * width * (3 * (steps - 1) + _passes(stage, holders) * reduced)
        if stage == 3 and holders > 1:  # what is gathered is copied out of its buffer
            whole_bytes += count * width * 2 * steps * (3 if config.model.activation_checkpoint_every else 2)
        own_bytes = own * (4 * 5 + (2 * width + 8 if stage else 0))  # norm and clip; flattened, copied twice
        if stage in (1, 2) and hardware.first_touch_gb_s:  # their bucket is new memory in each step
            total += count * width * reduced / (hardware.first_touch_gb_s * 1e9)
        update_bytes = own * (ADAM_BYTES + (EMA_BYTES if config.train.ema_decay else 0))
        total += ops_s([_pass(0.0, whole_bytes + own_bytes)], hardware, "fp32")
        if config.parallel.offload_optimizer:
            total += update_bytes / (hardware.host_gb_s * 1e9)
            total += own * 2 * width / (hardware.host_link_gb_s * 1e9)
        else:
            total += ops_s([TracedOp("update", other_bytes=update_bytes)], hardware, "fp32")
    return total


def _passes(stage: int, holders: int) -> int:
    """Times that each gradient is read or written on its way through DeepSpeed 0.19.8, as profiled."""
    if stage == 0:
        return 6 if holders > 1 else 4  # flattened, divided, copied back
    # into the bucket, flattened by kind, divided, copied back, out of it; stage 3 once more to a partition
    return 12 if stage == 3 else 10


def _pass(elements: float, other_bytes: float = 0.0) -> TracedOp:
    return TracedOp("copy", elements=elements, other_bytes=other_bytes)


def _exposed(
    config: RunConfig, hardware: Hardware, collectives: Sequence[Collective], compute: dict[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of collectives that are waited for, and those behind computing, by what they carry."""
    two_stages = config.parallel.expert_exchange.hierarchical
    room = {EXCHANGE: sum(s for name, s in compute.items() if name.endswith(EXPERTS))}
    rest = sum(compute.values()) - room[EXCHANGE]
    room |= {REDUCE: rest * 2 / 3, GATHER: rest}  # gradients come in the backward pass
    exposed, hidden = dict.fromkeys(room, 0.0), dict.fromkeys(room, 0.0)
    for one in collectives:
        name = EXCHANGE if one.kind == "all_to_all" else REDUCE if one.name.endswith("gradients") else GATHER
        seconds = collective_s(hardware, one, two_stages=two_stages)
        beside = min(seconds * one.hideable, room[name]) if hardware.device == "cuda" else 0.0
        room[name] -= beside
        exposed[name] += seconds - beside
        hidden[name] += beside
    return exposed, hidden


def collective_s(hardware: Hardware, one: Collective, *, two_stages: bool) -> float:
    """Seconds of a collective, all its times together."""
    size = one.size / one.pieces
    if one.kind == "all_to_all":
        run = hierarchical_s if two_stages else linear_s
        seconds = run(hardware, one.group, size)
    else:
        seconds = {"all_reduce": all_reduce_s, "gather": gather_s}[one.kind](hardware, one.group, size)
    return seconds * one.pieces * one.times


def _rows_s(hardware: Hardware, collectives: Sequence[Collective], *, two_stages: bool) -> float:
    return sum(
        collective_s(hardware, one, two_stages=two_stages)
        for one in collectives
        if one.kind == "all_to_all" and "weights" not in one.name
    )
