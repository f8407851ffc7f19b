"""Bytes of parameters, gradients and optimizer states of one rank, as DeepSpeed 0.19.8 keeps them for us.

Legend: b bytes of an element in the precision of the model, n elements of a group, p = n / ranks of its part,
rounded up: dense groups are cut over all ranks, experts over the ranks that hold a copy of them.

| stage | parameters | gradients | masters | of each moment, and of the average |
|---|---|---|---|---|
| 0 | b n | b n | 4 n, none in fp32 | 4 n |
| 1 | b n | b n, in bf16 4 n (beside the fleeting 2 n) | 4 p | 4 p |
| 2 | b n | b p, in bf16 4 p | 4 p | 4 p |
| 3 | b p | b p, in bf16 4 p | 4 p | 4 p |
"""

import math
from dataclasses import dataclass

from launcher.config.schema import RunConfig
from launcher.plan.memory.rank_params import ParamGroup, RankParams
from launcher.tasks.registry import planning_of
from parallel.ranks.dims import ParallelDims
from parallel.zero.memory import TeacherBytes, teacher_bytes

ALIGNMENT = 2  # elements: stages 1 and 2 pad a group to a multiple of it for each rank (NCCL's 4 bytes)


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one kind of parameters, dense or experts, of one rank."""

    parameters: int
    gradients: int
    optimizer: int  # fp32 masters, moments and average
    host: int  # the same, fp32 gradients and buffers, where they are offloaded


def states_of(config: RunConfig, held: RankParams, dims: ParallelDims, *, experts: bool) -> States:
    """The states of the dense parameters, or of the experts, of a rank."""
    stage, width = config.parallel.zero_stage, element_bytes(config)
    ranks = dims.dp_size if experts else dims.world_size
    groups = [group for group in held.groups if group.experts == experts]
    whole = sum(group.elements for group in groups)
    part = sum(part_of(group, ranks, stage) for group in groups)
    kept = whole if stage == 0 else part
    masters = 0 if width == 4 and stage == 0 else 4 * kept
    optimizer = masters + 4 * kept * fp32_states(config)
    frozen = held.frozen[int(experts)]
    parameters = width * part + width * -(-frozen // ranks) if stage == 3 else width * (whole + frozen)
    gradients = gradient_bytes(config) * (whole if stage < 2 else part)
    offload = config.parallel.offload_optimizer
    return States(
        parameters=parameters,
        gradients=gradients,
        optimizer=0 if offload else optimizer,
        host=_offloaded(config, held, part, experts=experts) if offload else 0,
    )


def teacher_of(config: RunConfig, held: RankParams, dims: ParallelDims) -> TeacherBytes:
    """The bytes of a task's teacher on a rank; nothing for a task without one."""
    teacher, updated = planning_of(config).teacher, 0
    if teacher is None:
        return TeacherBytes(0, 0)
    for elements, experts, ranks in zip(
        held.teacher, (False, True), (dims.world_size, dims.dp_size), strict=True
    ):
        groups = [group for group in held.groups if group.experts == experts]
        part = sum(part_of(group, ranks, config.parallel.zero_stage) for group in groups)
        # Where a teacher has a part of the student, its part of a rank's partition depends on the rank.
        updated += min(elements, part) if teacher.is_average else 0
    return teacher_bytes(sum(held.teacher), updated, config.train.precision)


def _offloaded(config: RunConfig, held: RankParams, part: int, *, experts: bool) -> int:
    """Host bytes: masters, moments and average, their fp32 gradients, and DeepSpeed's buffers."""
    width, stage = element_bytes(config), config.parallel.zero_stage
    states = part * (8 + 4 * fp32_states(config))
    if stage == 3:
        return states + part * gradient_bytes(config)
    largest = max(size for group in held.groups for size in group.sizes)
    return states + part * width + (0 if experts else width * largest)


def element_bytes(config: RunConfig) -> int:
    """Bytes of an element of the model: b."""
    return 4 if config.train.precision == "fp32" else 2


def gradient_bytes(config: RunConfig) -> int:
    """Bytes of an element of accumulated gradients: parallel/zero/options.py asks for fp32 beside bf16."""
    fp32 = config.train.precision == "bf16" and config.parallel.zero_stage > 0
    return 4 if fp32 else element_bytes(config)


def fp32_states(config: RunConfig) -> int:
    """fp32 tensors that the optimizer keeps beside a master: moments, and the moving average."""
    optim = config.optim
    moments = int(optim.momentum > 0) if optim.optimizer == "sgd" else 2
    return moments + int(config.train.ema_decay > 0)


def part_of(group: ParamGroup, ranks: int, stage: int) -> int:
    """Elements of a group that one of its ranks updates: p."""
    if stage == 0:
        return group.elements
    if stage == 3:  # each parameter is cut by itself
        return sum(-(-size // ranks) for size in group.sizes)
    unit = ALIGNMENT * ranks
    return math.ceil(group.elements / unit) * unit // ranks


def touched_by(group: ParamGroup, ranks: int) -> int:
    """Elements of the parameters that one rank's part touches, at most: stages 1 and 2 keep them whole."""
    part, first, touched = part_of(group, ranks, 1), 0, [0] * ranks
    for size in group.sizes:
        for rank in range(first // part, min(ranks - 1, (first + size - 1) // part) + 1):
            touched[rank] += size
        first += size
    return max(touched)
