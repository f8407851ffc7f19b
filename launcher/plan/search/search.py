"""All layouts of a run on a cluster: the valid ones that fit, fastest first, and why the others do not."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from launcher.config.load import ConfigError
from launcher.config.schema import ParallelConfig, RunConfig
from launcher.plan.search.candidate import Candidate, Predictor
from launcher.plan.search.exchanges import ExchangeOrder, lean_exchange, with_exchange
from launcher.tasks.registry import task_spec
from launcher.validation.elastic import batch_unit, divisors
from launcher.validation.rules import rule_errors
from parallel.experts.options import ExchangeOptions

MOST_MICRO = 8  # micro-batches that are tried, the largest ones
STAGES = ((0, False), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True))  # ZeRO, offload
Say = Callable[[str], None]


def search(
    config: RunConfig,
    nodes: Sequence[int],
    predictor: Predictor,
    say: Say = lambda _: None,
    most: int | None = None,
) -> list[Candidate]:
    """Try every layout with its fastest exchange; the global batch, and so what is computed, stays.

    Args:
        config: of a run; its own layout is one of many.
        nodes: ranks of each node.
        predictor: of the run on its hardware.
        say: gets how far it is.
        most: memory, which takes longest, is predicted fastest layout first, until so many fit; None: of all.

    Returns:
        Those that fit, fastest first; those that do not, by what they lack; those that no run may have.

    Raises:
        ConfigError: the global batch does not divide over the ranks, whatever the layout.
    """
    if error := batch_error(config, sum(nodes)):
        raise ConfigError(error)
    order = ExchangeOrder(predictor=predictor, nodes=nodes)
    timed = [_fastest(one, nodes, predictor, order, say) for one in layouts(config, nodes)]
    weighed = _weigh(timed, predictor, order, say, most)
    return sorted(weighed, key=lambda c: _rank(c, predictor.hardware.memory_bytes))


def batch_error(config: RunConfig, ranks: int) -> str:
    """The equation that no layout on so many ranks can meet, with what would; "" where one can."""
    batch, unit = config.train.global_batch_size, batch_unit(config)
    if batch % (ranks * unit) == 0:
        return ""
    fewer = [n for n in range(1, ranks) if batch % (n * unit) == 0]
    nearest = max(1, round(batch / (ranks * unit))) * ranks * unit
    least = f"{ranks} ranks" + (f" x {unit} images ({_unit_options(config)})" if unit > 1 else "")
    product = f" = {ranks * unit}" if unit > 1 else ""
    ways = [*(f"{n} ranks" for n in fewer[-1:]), f"train.global_batch_size={nearest}"]
    return (
        f"no layout works: {least}{product} must divide train.global_batch_size ({batch}); "
        f"{' or '.join(ways)} would do"
    )


def _unit_options(config: RunConfig) -> str:
    """What makes a micro-batch a multiple of several images."""
    moe, augment = config.model.moe, config.data.augment
    routed = f"model.moe.routing_group_images={moe.routing_group_images}" if moe else ""
    mixed = "pairs of data.augment" if augment and augment.group_size > 1 else ""
    parts = sum(task_spec(config.task).train_data(config).shares.values())
    shared = f"{parts} shares of task={config.task}" if parts > 1 else ""
    return ", ".join(text for text in (shared, routed, mixed) if text)


def _fastest(
    config: RunConfig, nodes: Sequence[int], predictor: Predictor, order: ExchangeOrder, say: Say
) -> Candidate:
    """A layout with the exchange that takes the least time."""
    say(f"time of ep {config.parallel.ep_size}, ZeRO {config.parallel.zero_stage}")
    lean = predictor.timed(with_exchange(config, lean_exchange(config)), nodes)
    if lean.reason:
        return lean
    return predictor.timed(with_exchange(config, order(config)[0]), nodes)


def _weigh(
    timed: Sequence[Candidate], predictor: Predictor, order: ExchangeOrder, say: Say, most: int | None
) -> list[Candidate]:
    """Memory of the fastest layouts until so many fit; one that does not is tried with a lean exchange."""
    done, fit, numbers = [one for one in timed if one.time is None], 0, count()
    queue = [(-one.time.images_s, next(numbers), one) for one in timed if one.time]
    heapq.heapify(queue)
    while queue:
        _, _, one = heapq.heappop(queue)
        if most is not None and fit >= most:
            done.append(one)
            continue
        say(f"memory of layout {len(done) + 1} of {len(timed)}")
        one = predictor.weighed(one)
        leaner = _leaner(one, order) if one.reason else None
        if leaner is None:
            done.append(one)
            fit += not one.reason
        elif (again := predictor.timed(leaner, one.nodes)).time is not None:
            heapq.heappush(queue, (-again.time.images_s, next(numbers), again))
    return done


def _leaner(candidate: Candidate, order: ExchangeOrder) -> RunConfig | None:
    """The layout with its fastest exchange that gathers no weights and keeps no second chunk of rows."""
    own = candidate.config.parallel.expert_exchange
    if _is_lean(own):
        return None
    lean = next((one for one in order(candidate.config) if _is_lean(one)), None)
    return None if lean is None else with_exchange(candidate.config, lean)


def _is_lean(exchange: ExchangeOptions) -> bool:
    return exchange.strategy == "ep" and exchange.overlap == 1


def layouts(config: RunConfig, nodes: Sequence[int]) -> Iterator[RunConfig]:
    """Every combination that is worth judging; those that break a rule of the experts once each."""
    world, micros, exchange = sum(nodes), micro_batches(config, sum(nodes)), lean_exchange(config)
    for parallel in _expert_layouts(config, world):
        plain = _with(config, replace(parallel, expert_exchange=exchange), micros[0], 0)
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


def _rank(candidate: Candidate, memory_bytes: float) -> tuple[int, float]:
    """Fitting ones by speed, slower ones, large ones by what they lack, forbidden ones last."""
    if candidate.time is None:
        return 3, 0.0
    if candidate.memory is None:
        return 1, -candidate.time.images_s
    if candidate.reason:
        return 2, candidate.memory.peak_bytes - memory_bytes
    return 0, -candidate.time.images_s
