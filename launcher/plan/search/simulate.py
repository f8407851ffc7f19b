"""One run on more and more ranks: weak scaling, where the exchange overtakes computing, what failures cost.

Every rank keeps its images of a step; the global batch grows with the ranks. The layout of the experts is the
configured one; where it does not divide, it is the one that `train --elastic` takes. So a point is what
`plan` predicts for as many ranks and the same global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.plan.search.candidate import Candidate, Predictor
from launcher.plan.search.exchanges import with_exchange
from launcher.plan.search.failures import Failures, goodput, young_s
from launcher.plan.time.estimate import EXCHANGE, StepTime
from launcher.plan.time.links import crossover_bytes, groups_of
from launcher.plan.time.traffic import experts_held
from launcher.validation.elastic import replan


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of ranks."""

    candidate: Candidate  # with its time and memory
    other_hops: StepTime | None  # with `hierarchical` the other way round; None where that cannot be had
    efficiency: float  # images/s of a rank over those of the first point
    crossover_bytes: float  # of a rank's rows, below which two stages win
    rows_bytes: float  # of a rank, in one MoE layer
    mtbf_s: float
    interval_s: float
    goodput: float  # the share of the time that goes into steps that stay

    @property
    def time(self) -> StepTime:
        """Of a step."""
        assert self.candidate.time is not None
        return self.candidate.time

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.candidate.ranks

    @property
    def ep_size(self) -> int:
        """Ranks that share the experts."""
        return self.candidate.config.parallel.ep_size

    @property
    def experts_held(self) -> int:
        """Experts of the rank that holds most; 0 of a dense model."""
        config = self.candidate.config
        return experts_held(config, config.parallel.dims(self.ranks)) if config.model.moe else 0

    @property
    def exchange_share(self) -> float:
        """Of the all-to-all in a step."""
        return self.time.groups.get(EXCHANGE, 0.0) / self.time.step_s

    @property
    def exchange_wins(self) -> bool:
        """Whether the all-to-all takes longer than computing."""
        return self.time.groups.get(EXCHANGE, 0.0) > self.time.groups["compute"]

    @property
    def hops_gain(self) -> float:
        """What `hierarchical` the other way round adds to the speed, as a share of it."""
        return self.time.step_s / self.other_hops.step_s - 1 if self.other_hops else 0.0


def simulate(
    config: RunConfig,
    counts: Sequence[int],
    predictor: Predictor,
    failures: Failures,
    grad_accum_steps: int = 1,
) -> list[Point]:
    """Predict each number of ranks, on full nodes.

    Args:
        config: of a run; its global batch is not used.
        counts: of ranks.
        predictor: of the run on its hardware.
        failures: of the ranks.
        grad_accum_steps: micro-batches of a step, on every number of ranks.

    Raises:
        ConfigError: the run cannot be had on a number of ranks.
    """
    points: list[Point] = []
    for ranks in counts:
        own, nodes = grown(config, ranks, predictor.hardware.ranks_per_node, grad_accum_steps)
        candidate = predictor.predict(own, nodes)
        if candidate.time is None:
            raise ConfigError(f"--simulate: this run cannot be had on {ranks} ranks: {candidate.reason}")
        points.append(_point(candidate, predictor, failures, points))
    return points


def grown(
    config: RunConfig, ranks: int, ranks_per_node: int, grad_accum_steps: int
) -> tuple[RunConfig, list[int]]:
    """The run on so many ranks, each with its images of a step, and the ranks of each node."""
    per_node = min(ranks, ranks_per_node)
    images = config.train.micro_batch_size * grad_accum_steps
    train = replace(config.train, global_batch_size=ranks * images)
    own, _ = replan(replace(config, train=train), ranks, per_node)
    return own, [per_node] * (ranks // per_node)


def _point(candidate: Candidate, predictor: Predictor, failures: Failures, before: Sequence[Point]) -> Point:
    config, ranks, time = candidate.config, candidate.ranks, candidate.time
    assert time is not None
    exchange = config.parallel.expert_exchange
    other = with_exchange(config, replace(exchange, hierarchical=not exchange.hierarchical))
    first = before[0].time.images_s / before[0].ranks if before else time.images_s / ranks
    mtbf_s = failures.mtbf_gpu_h * 3600 / ranks
    rows = [c.size for c in time.collectives if c.name == "rows forward"]
    group = groups_of(config.parallel.dims(ranks), candidate.nodes, 1).exchange
    return Point(
        candidate=candidate,
        other_hops=predictor.timed(other, candidate.nodes).time,
        efficiency=time.images_s / ranks / first,
        crossover_bytes=crossover_bytes(predictor.hardware, group),
        rows_bytes=max(rows, default=0.0),
        mtbf_s=mtbf_s,
        interval_s=young_s(failures.save_s, mtbf_s),
        goodput=goodput(failures, mtbf_s),
    )
