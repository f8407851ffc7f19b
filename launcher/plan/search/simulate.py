"""One run on more and more ranks: weak scaling, where the exchange overtakes computing, what failures cost.

Every rank keeps its images of a step; the global batch grows with the ranks. The experts' group grows up to
the number of experts, as the configuration has it, and not beyond what divides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.time.compute_cost import ComputeCost, compute_cost
from launcher.plan.time.estimate import EXCHANGE, StepTime, predict_time
from launcher.plan.time.links import crossover_bytes, groups_of

# Llama 3 (Dubey et al. 2024, section 3.3.4): 419 unplanned interruptions in 54 days on 16,384 GPUs, one in so
# many GPU-hours
MTBF_GPU_H = 50_700.0


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What goes wrong, and what it costs."""

    mtbf_gpu_h: float = MTBF_GPU_H  # between failures of one GPU, or of what a run needs beside it
    save_s: float = 30.0  # that a checkpoint keeps training waiting
    restart_s: float = 300.0  # from the failure to the next step


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of ranks."""

    ranks: int
    ep_size: int
    time: StepTime
    efficiency: float  # images/s of a rank over those of the first point
    crossover_bytes: float  # of a rank's rows, below which two stages win
    rows_bytes: float  # of a rank, in one MoE layer
    mtbf_s: float
    interval_s: float
    goodput: float  # the share of the time that goes into steps that stay

    @property
    def exchange_share(self) -> float:
        """Of the all-to-all in a step."""
        return self.time.groups.get(EXCHANGE, 0.0) / self.time.step_s

    @property
    def exchange_wins(self) -> bool:
        """Whether the all-to-all takes longer than computing."""
        return self.time.groups.get(EXCHANGE, 0.0) > self.time.groups["compute"]

    @property
    def two_stages_win(self) -> bool:
        """Whether the hierarchical exchange is the faster one."""
        return self.time.all_to_all_hierarchical_s < self.time.all_to_all_linear_s


def parse_range(text: str) -> list[int]:
    """Powers of two, such as 8..4096.

    Raises:
        ConfigError: it is no such range.
    """
    first, dots, last = text.partition("..")
    if not dots or not first.isdecimal() or not last.isdecimal() or not 1 <= int(first) <= int(last):
        raise ConfigError(f"--simulate ({text}) must be FIRST..LAST numbers of GPUs, such as 8..4096")
    low, high = int(first), int(last)
    if low & (low - 1) or high & (high - 1):
        near = [1 << round(math.log2(n)) for n in (low, high)]
        raise ConfigError(f"--simulate ({text}) goes by powers of two: {near[0]}..{near[1]} would do")
    return [low << i for i in range(int(math.log2(high // low)) + 1)]


def simulate(
    config: RunConfig,
    counts: Sequence[int],
    hardware: Hardware,
    failures: Failures,
    cost: ComputeCost | None = None,
) -> list[Point]:
    """Predict each number of ranks, on full nodes.

    Raises:
        ConfigError: the hardware does not know the precision.
    """
    cost = cost or compute_cost(config, hardware)
    images = max(1, config.train.global_batch_size // counts[0])
    images -= images % config.train.micro_batch_size if images >= config.train.micro_batch_size else 0
    images = max(images, config.train.micro_batch_size)
    points: list[Point] = []
    for ranks in counts:
        points.append(_point(config, ranks, images, hardware, failures, cost, points))
    return points


def grown(config: RunConfig, ranks: int, images: int) -> RunConfig:
    """The run on so many ranks of `images` a step: as many ranks share the experts as can."""
    train = replace(config.train, global_batch_size=ranks * images)
    ep_size = config.parallel.ep_size
    if config.model.moe is not None:
        ep_size = math.gcd(
            ranks, max(ep_size, config.model.moe.num_experts * config.parallel.expert_tensor_parallel_size)
        )
    slices = math.gcd(config.parallel.expert_tensor_parallel_size, ep_size)
    parallel = replace(config.parallel, ep_size=ep_size, expert_tensor_parallel_size=slices)
    return replace(config, train=train, parallel=parallel)


def _point(
    config: RunConfig,
    ranks: int,
    images: int,
    hardware: Hardware,
    failures: Failures,
    cost: ComputeCost,
    before: Sequence[Point],
) -> Point:
    own = grown(config, ranks, images)
    per_node = min(ranks, hardware.ranks_per_node)
    nodes = [per_node] * (ranks // per_node)
    time = predict_time(own, nodes, hardware, cost)
    first = before[0].time.images_s / before[0].ranks if before else time.images_s / ranks
    mtbf_s = failures.mtbf_gpu_h * 3600 / ranks
    rows = [c.size for c in time.collectives if c.name == "rows forward"]
    group = groups_of(own.parallel.dims(sum(nodes)), nodes, 1).exchange
    return Point(
        ranks=ranks,
        ep_size=own.parallel.ep_size,
        time=time,
        efficiency=time.images_s / ranks / first,
        crossover_bytes=crossover_bytes(hardware, group),
        rows_bytes=max(rows, default=0.0),
        mtbf_s=mtbf_s,
        interval_s=young_s(failures.save_s, mtbf_s),
        goodput=goodput(failures, mtbf_s),
    )


def young_s(save_s: float, mtbf_s: float) -> float:
    """The interval between checkpoints that loses the least: sqrt(2 save MTBF) (Young 1974)."""
    return math.sqrt(2 * save_s * mtbf_s)


def goodput(failures: Failures, mtbf_s: float) -> float:
    """The share of the time that is not lost to saves, to steps done again and to restarts; at least 0.

    To first order: save / interval, and per failure half an interval and a restart (Young 1974).
    """
    interval_s = young_s(failures.save_s, mtbf_s)
    saves = failures.save_s / interval_s if interval_s else 0.0
    return max(0.0, 1 - saves - (interval_s / 2 + failures.restart_s) / mtbf_s)
