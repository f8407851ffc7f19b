"""All layouts of a run on a cluster: the valid ones that fit, fastest first, and why the others do not."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from launcher.config.schema import ParallelConfig, RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.memory.estimate import Memory, predict_memory
from launcher.plan.time.compute_cost import ComputeCost, compute_cost
from launcher.plan.time.estimate import StepTime, predict_time
from launcher.validation.elastic import batch_unit, divisors
from launcher.validation.rules import rule_errors

MOST_MICRO = 8  # micro-batches that are tried, the largest ones
STAGES = ((0, False), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True))  # ZeRO, offload


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout, what it takes, and why it cannot be had; "" where it can."""

    config: RunConfig
    time: StepTime | None = None
    memory: Memory | None = None
    reason: str = ""

    @property
    def overrides(self) -> list[str]:
        """What to add to the command line for it."""
        parallel, train = self.config.parallel, self.config.train
        return [
            f"parallel.ep_size={parallel.ep_size}",
            f"parallel.expert_tensor_parallel_size={parallel.expert_tensor_parallel_size}",
            f"parallel.zero_stage={parallel.zero_stage}",
            f"parallel.offload_optimizer={str(parallel.offload_optimizer).lower()}",
            f"train.micro_batch_size={train.micro_batch_size}",
            f"model.activation_checkpoint_every={self.config.model.activation_checkpoint_every}",
        ]


def search(
    config: RunConfig,
    nodes: Sequence[int],
    hardware: Hardware,
    cost: ComputeCost | None = None,
    say: Callable[[str], None] = lambda _: None,
    most: int | None = None,
) -> list[Candidate]:
    """Try every layout; the global batch, and so what is computed, stays.

    Args:
        config: of a run; its own layout is one of many.
        nodes: ranks of each node.
        hardware: of every rank.
        cost: of the run on the hardware, where it is known.
        say: told how far it is.
        most: memory, which takes longest, is predicted fastest layout first, until so many fit; None: of all.

    Returns:
        Those that fit, fastest first; those that do not, by what they lack; those that no run may have.
    """
    cost = cost or compute_cost(config, hardware)
    candidates, fit = [], 0
    timed = [_timed(one, nodes, hardware, cost) for one in layouts(config, nodes)]
    timed.sort(key=lambda one: -one.time.images_s if one.time else 0.0)
    for number, one in enumerate(timed):
        say(f"layout {number + 1} of {len(timed)}")
        if one.time and (most is None or fit < most):
            one = _weighed(one, nodes, hardware)
            fit += not one.reason
        candidates.append(one)
    return sorted(candidates, key=lambda c: _rank(c, hardware))


def _timed(config: RunConfig, nodes: Sequence[int], hardware: Hardware, cost: ComputeCost) -> Candidate:
    """One layout by the rules and by time."""
    if errors := rule_errors(config, sum(nodes), nodes):
        return Candidate(config=config, reason=errors[0])
    return Candidate(config=config, time=predict_time(config, nodes, hardware, cost))


def _weighed(candidate: Candidate, nodes: Sequence[int], hardware: Hardware) -> Candidate:
    """And by memory."""
    memory = predict_memory(candidate.config, nodes, hardware.device)
    short = memory.peak_bytes - hardware.memory_bytes
    reason = f"needs {short / 2**30:.1f} GiB more than {hardware.memory_gib:g}" if short > 0 else ""
    return replace(candidate, memory=memory, reason=reason)


def layouts(config: RunConfig, nodes: Sequence[int]) -> Iterator[RunConfig]:
    """Every combination that is worth judging; those that break a rule of the experts once each."""
    world = sum(nodes)
    micros = micro_batches(config, world) or [config.train.micro_batch_size]
    for parallel in _expert_layouts(config, world):
        plain = _with(config, replace(parallel, zero_stage=1, offload_optimizer=False), micros[-1], 0)
        if rule_errors(plain, world):
            yield plain
            continue
        for stage, offload in STAGES:
            for micro in reversed(micros):
                for every in (0, 1):
                    changed = replace(parallel, zero_stage=stage, offload_optimizer=offload)  # type: ignore[arg-type]
                    yield _with(config, changed, micro, every)


def micro_batches(config: RunConfig, world: int) -> list[int]:
    """What a rank may hold at once of the global batch: the largest few numbers that divide its share."""
    share, rest = divmod(config.train.global_batch_size, world)
    unit = batch_unit(config)
    return [] if rest else [n for n in divisors(share) if n % unit == 0][-MOST_MICRO:]


def _expert_layouts(config: RunConfig, world: int) -> Iterator[ParallelConfig]:
    if config.model.moe is None:
        yield replace(config.parallel, ep_size=1, expert_tensor_parallel_size=1)
        return
    for ep_size in divisors(world):
        for slices in divisors(ep_size):
            yield replace(config.parallel, ep_size=ep_size, expert_tensor_parallel_size=slices)


def _with(config: RunConfig, parallel: ParallelConfig, micro: int, every: int) -> RunConfig:
    train, model = (
        replace(config.train, micro_batch_size=micro),
        replace(config.model, activation_checkpoint_every=every),
    )
    return replace(config, parallel=parallel, train=train, model=model)


def _rank(candidate: Candidate, hardware: Hardware) -> tuple[int, float]:
    """Fitting ones by speed, slower ones, large ones by what they lack, forbidden ones last."""
    if candidate.time is None:
        return 3, 0.0
    if candidate.memory is None:
        return 1, -candidate.time.images_s
    if candidate.reason:
        return 2, candidate.memory.peak_bytes - hardware.memory_bytes
    return 0, -candidate.time.images_s
