"""What the ranks of a layout send each other in one step: every collective with its group and its bytes.

Legend: R rows of a rank in one MoE layer, C channels, ep ranks of an expert group, g gather degree.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

from launcher.config.schema import RunConfig
from launcher.plan.memory.rank_params import bucket_of, params_of_fullest_rank
from launcher.plan.time.links import RankGroup, RankGroups, groups_of, split_bytes
from launcher.plan.time.roofline import WIDTHS
from launcher.plan.time.workload import Experts, Workload, expert_rows
from parallel.experts.gather_degree import (
    KEY_BYTES,
    bytes_of_row,
    cheapest_degree,
    copies_of_row,
    wire_bytes,
)
from parallel.ranks.dims import ParallelDims

Kind = Literal["all_to_all", "all_reduce", "gather"]


class Collective(NamedTuple):
    """One collective, as often as a step has it."""

    name: str
    kind: Kind
    group: RankGroup
    size: float  # bytes: of a rank's message, or of what is gathered; its own part included
    times: float = 1.0
    pieces: float = 1.0  # in which each of them is done
    hideable: float = 0.0  # the share that can run beside computing

    @property
    def sent_bytes(self) -> float:
        """What a rank sends in a step, by a ring or directly."""
        share = (self.group.size - 1) / self.group.size
        return self.times * self.size * share * (2 if self.kind == "all_reduce" else 1)

    @property
    def crossing_bytes(self) -> float:
        """Of an all-to-all, what leaves the node."""
        return self.times * split_bytes(self.group, self.size)[1] if self.kind == "all_to_all" else 0.0


def accumulation(config: RunConfig, dims: ParallelDims) -> int:
    """Micro-batches of a step."""
    return max(1, config.train.grad_accum_steps(dims.world_size))


def experts_held(config: RunConfig, dims: ParallelDims) -> int:
    """Experts of the rank that holds most, or slices of so many."""
    assert config.model.moe is not None
    ranges = (dims.local_experts(rank, config.model.moe.num_experts) for rank in range(dims.ep_size))
    return max(len(held) for held in ranges)


def gather_degree(config: RunConfig, dims: ParallelDims, experts: Experts) -> int:
    """The gather degree that the exchange takes."""
    exchange, widths = config.parallel.expert_exchange, WIDTHS[config.train.precision]
    assert config.model.moe is not None
    return cheapest_degree(
        exchange.strategy,
        ep_size=dims.ep_size,
        expert_tensor_parallel_size=dims.expert_tensor_parallel_size,
        weight_bytes=config.model.moe.num_experts * experts.parameters * widths.gradient,
        row_bytes=bytes_of_row(
            exchange, channels=experts.dim, element_size=int(widths.row), keyed=_is_keyed(config)
        ),
        rows=expert_rows(config.model, experts.length, images=config.train.micro_batch_size),
    )


def traffic(
    config: RunConfig, nodes: Sequence[int], work: Workload, *, overlaps: bool = True
) -> list[Collective]:
    """All collectives of a step; `overlaps`: whether reductions may run beside the backward pass, on GPUs."""
    dims = config.parallel.dims(sum(nodes))
    if dims.world_size == 1:
        return []
    bucket = float(bucket_of(config, params_of_fullest_rank(config, dims), overlaps=overlaps))
    collectives = list(_zero(config, dims, groups_of(dims, nodes, 1), work, bucket))
    micro, forwards = config.train.micro_batch_size, 2 if config.model.activation_checkpoint_every else 1
    for experts in work.experts:
        exchange = partial(_exchange, config, dims, nodes, experts)
        collectives += exchange(micro * work.views, forwards=forwards, backwards=1)
        teacher = exchange(micro * work.teacher_views, forwards=1, backwards=0) if work.teacher_views else ()
        collectives += [collective._replace(name=f"teacher's {collective.name}") for collective in teacher]
    return [c for c in collectives if c.group.size > 1 and c.size > 0 and c.times > 0]


def _exchange(
    config: RunConfig,
    dims: ParallelDims,
    nodes: Sequence[int],
    experts: Experts,
    images: int,
    *,
    forwards: int,
    backwards: int,
) -> Iterator[Collective]:
    """Of the MoE layers of a stage, for so many passes: rows out and back, and gathered weights."""
    degree = gather_degree(config, dims, experts)
    groups, options = groups_of(dims, nodes, degree), config.parallel.expert_exchange
    layers = experts.layers * accumulation(config, dims)
    rows = expert_rows(config.model, experts.length, images=images, padded=options.padded)
    copies = copies_of_row(dims.expert_tensor_parallel_size, degree)
    rows *= copies
    width = wire_bytes(options, int(WIDTHS[config.train.precision].row))
    size, hidden = rows * experts.dim * width, (options.overlap - 1) / options.overlap
    travel = Collective("", "all_to_all", groups.exchange, size, pieces=options.overlap, hideable=hidden)
    yield travel._replace(name="rows forward", times=2 * layers * forwards)
    yield travel._replace(name="rows backward", times=2 * layers * backwards)
    if _is_keyed(config):
        yield travel._replace(name="keys of rows", size=rows * KEY_BYTES, times=layers * forwards)
    if not options.padded:
        counts = 8.0 * config.model.moe.num_experts * copies  # type: ignore[union-attr]
        yield Collective("counts of rows", "all_to_all", groups.exchange, counts, layers * forwards)
    own = experts.parameters * experts_held(config, dims) / dims.expert_tensor_parallel_size
    weights = degree * own * WIDTHS[config.train.precision].gradient
    yield Collective(
        "weights of experts", "all_to_all", groups.gather, weights, layers * (forwards + backwards)
    )


def _zero(
    config: RunConfig, dims: ParallelDims, groups: RankGroups, work: Workload, bucket: float
) -> Iterator[Collective]:
    """Of dense parameters over all ranks, and of experts over their copies (docs/engine.md).

    DeepSpeed 0.19.8 reduces stages 1 and 2 by an all-reduce of whole buckets, of which each rank keeps its
    part (stage_1_and_2.py: allreduce_and_scatter), in the precision of the model.
    """
    stage, width = config.parallel.zero_stage, WIDTHS[config.train.precision].gradient
    steps = accumulation(config, dims)
    for name, group, count in (
        ("dense", groups.world, float(work.dense_parameters)),
        ("expert", groups.copies, expert_parameters(config, dims, work)),
    ):
        size, hidden = count * width, _hideable(config, count, bucket)
        reduced = steps if stage >= 2 else 1
        kind: Kind = "gather" if stage == 3 else "all_reduce"
        pieces = max(1.0, count / bucket)
        yield Collective(f"{name} gradients", kind, group, size, reduced, pieces, hidden)
        if stage in (1, 2):
            yield Collective(f"{name} parameters", "gather", group, size)
        if stage == 3:
            passes = steps * (3 if config.model.activation_checkpoint_every else 2)
            tensors = work.dense_tensors if name == "dense" else sum(e.layers for e in work.experts)
            yield Collective(f"{name} parameters", "gather", group, size, passes, max(1, tensors), 1.0)


def expert_parameters(config: RunConfig, dims: ParallelDims, work: Workload) -> float:
    """Elements of the experts that a rank holds."""
    if not work.experts:
        return 0.0
    held = experts_held(config, dims) / dims.expert_tensor_parallel_size
    return sum(experts.layers * experts.parameters * held for experts in work.experts)


def _hideable(config: RunConfig, count: float, bucket: float) -> float:
    """The share of a reduction that starts before the backward pass ends: all full buckets but the last.

    DeepSpeed's optimizer of stage 1 in bf16 reduces when the pass has ended, and so does stage 0.
    """
    parallel = config.parallel
    is_bf16_optimizer = config.train.precision == "bf16" and not parallel.offload_optimizer
    if parallel.zero_stage == 0 or (parallel.zero_stage == 1 and is_bf16_optimizer):
        return 0.0
    return max(0.0, (count // bucket) * bucket / count) if count else 0.0


def _is_keyed(config: RunConfig) -> bool:
    """Whether rows travel with keys, as where experts drop out."""
    return config.model.moe is not None and config.model.moe.expert_dropout > 0
