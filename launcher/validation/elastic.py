"""Going on with another number of ranks: ep_size, slices, gathering and micro-batch fitted, the result kept.

The global batch, and so every sample, every routing group and every gradient, stays; the stream and the
checkpoint fit any layout (docs/architecture.md). What fits is left as it is configured.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd, lcm

from launcher.config.load import ConfigError
from launcher.config.schema import ParallelConfig, RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.rundir.history import all_sessions
from launcher.tasks.registry import task_spec
from launcher.validation.layout import print_lines
from parallel.experts.options import ExchangeOptions
from parallel.ranks.dims import LayoutError, ParallelDims


def adapt(config: RunConfig, run: RunDirectory, nodes: Sequence[int], *, say: bool) -> RunConfig:
    """The plan for the ranks that are there, the same on every rank.

    Args:
        config: as it was requested.
        run: whose last session says how many ranks there were.
        nodes: ranks of each node.
        say: whether to print it.

    Raises:
        ConfigError: nothing fits.
    """
    even, before = len(set(nodes)) == 1, _ranks_before(run)
    planned, lines = replan(config, sum(nodes), gcd(*nodes), even_nodes=even, before=before)
    if say:
        print_lines(lines)
    return planned


def replan(
    config: RunConfig,
    world_size: int,
    ranks_per_node: int | None = None,
    *,
    even_nodes: bool = True,
    before: int | None = None,
) -> tuple[RunConfig, list[str]]:
    """Fit a configuration to a number of ranks without changing what is computed.

    ep_size: the largest up to the configured one that divides the ranks and lies inside a node, or fills
    whole ones; where that put all experts on every rank, the smallest above, for the memory.
    micro_batch_size: the largest up to the configured one, for the memory too.

    Args:
        config: valid, but for the number of ranks.
        world_size: ranks.
        ranks_per_node: of every node, or a common divisor of them; None where it is not known.
        even_nodes: whether all nodes have as many; else no exchange is in two stages.
        before: ranks of the session before, if there was one.

    Returns:
        The plan, and what to say of it, old -> new; nothing where nothing changes.

    Raises:
        ConfigError: no micro-batch fits; the message has numbers of ranks that would do.
    """
    parallel = _parallel(config, world_size, ranks_per_node)
    if parallel.expert_exchange.hierarchical and not even_nodes:
        exchange = replace(parallel.expert_exchange, hierarchical=False)
        parallel = replace(parallel, expert_exchange=exchange)
    micro = _micro_batch(config, world_size)
    planned = replace(config, parallel=parallel, train=replace(config.train, micro_batch_size=micro))
    return planned, _lines(config, planned, world_size, before)


def _parallel(config: RunConfig, world_size: int, per_node: int | None) -> ParallelConfig:
    """The layout of experts; a rule that holds on no number of ranks is left to rules.py."""
    requested, moe = config.parallel, config.model.moe
    if moe is None or requested.ep_size % requested.expert_tensor_parallel_size:
        return requested
    ep_size, slices = requested.ep_size, requested.expert_tensor_parallel_size
    if world_size % ep_size:
        fitting = {n: s for n in divisors(world_size) if (s := _slices(n, slices, moe.num_experts))}
        ep_size = _best(list(fitting), ep_size, per_node)
        slices = fitting[ep_size]
    planned = replace(requested, ep_size=ep_size, expert_tensor_parallel_size=slices)
    dims, anew = planned.dims(world_size), world_size % requested.ep_size > 0
    return replace(planned, expert_exchange=_exchange(requested.expert_exchange, dims, per_node, anew=anew))


def _best(fitting: list[int], requested: int, per_node: int | None) -> int:
    """One of the sizes that fit, of which 1 always is one."""
    tidy = [n for n in fitting if per_node is None or per_node % n == 0 or n % per_node == 0]
    smaller = [n for n in tidy if 1 < n <= requested]
    return max(smaller) if smaller else min((n for n in tidy if n > requested), default=1)


def _slices(ep_size: int, most: int, num_experts: int) -> int | None:
    """The most slices of each expert, up to a number, that leave every block of ranks an expert."""
    fits = [n for n in divisors(ep_size) if n <= most and ep_size // n <= num_experts]
    return max(fits, default=None)


def _exchange(
    requested: ExchangeOptions, dims: ParallelDims, per_node: int | None, *, anew: bool
) -> ExchangeOptions:
    """Gathering over as many ranks as fit, up to those configured; two stages where nodes allow it."""
    strategy = requested.strategy
    if anew and not isinstance(strategy, str):
        fits = [n for n in divisors(dims.ep_size) if _holds(dims.check_gather_degree, n)]
        strategy = max(n for n in fits if n <= strategy)
    degrees = [1, dims.expert_tensor_parallel_size, dims.ep_size] if isinstance(strategy, str) else [strategy]
    hierarchical = requested.hierarchical and (
        per_node is None or all(_holds(dims.check_hierarchy, per_node, degree) for degree in degrees)
    )
    return replace(requested, strategy=strategy, hierarchical=hierarchical)


def _micro_batch(config: RunConfig, world_size: int) -> int:
    """Images that a rank holds at once: the configured number, or the largest below it that fits."""
    train, unit = config.train, batch_unit(config)
    fits = _micro_batches(config, world_size, unit)
    would_do = [n for n in range(1, train.global_batch_size + 1) if _micro_batches(config, n, unit)]
    if train.micro_batch_size % unit or train.micro_batch_size in fits or not would_do:
        return train.micro_batch_size
    if fits:
        return max(fits)
    below, above = [n for n in would_do if n < world_size], [n for n in would_do if n > world_size]
    raise ConfigError(
        f"--elastic: train.global_batch_size ({train.global_batch_size}) does not divide over {world_size} "
        f"ranks in micro-batches of a multiple of {unit}, at most {train.micro_batch_size}; "
        f"{' or '.join(map(str, [*below[-1:], *above[:1]]))} ranks would do"
    )


def _micro_batches(config: RunConfig, world_size: int, unit: int) -> list[int]:
    """All micro-batches up to the configured one that the rules of launcher/validation/rules.py allow."""
    share, rest = divmod(config.train.global_batch_size, world_size)
    most = min(share, config.train.micro_batch_size)
    return [] if rest else [n for n in range(unit, most + 1, unit) if share % n == 0]


def batch_unit(config: RunConfig) -> int:
    """What a micro-batch must be a multiple of: the shares of its parts, each of complete groups of images.

    Images of a group are mixed, or routed, together.
    """
    moe, augment = config.model.moe, config.data.augment
    group = lcm(moe.routing_group_images if moe else 1, augment.group_size if augment else 1)
    shares = task_spec(config.task).train_data(config).shares.values()
    return sum(shares) * (group // gcd(group, *shares))


def _lines(old: RunConfig, new: RunConfig, world_size: int, before: int | None) -> list[str]:
    """What changes, old -> new."""
    pairs = {
        "parallel.ep_size": (old.parallel.ep_size, new.parallel.ep_size),
        "parallel.expert_tensor_parallel_size": (
            old.parallel.expert_tensor_parallel_size,
            new.parallel.expert_tensor_parallel_size,
        ),
        **{
            f"parallel.expert_exchange.{name}": (
                getattr(old.parallel.expert_exchange, name),
                getattr(new.parallel.expert_exchange, name),
            )
            for name in ("strategy", "hierarchical")
        },
        "train.micro_batch_size": (old.train.micro_batch_size, new.train.micro_batch_size),
    }
    changed = [f"  {name}: {a} -> {b}" for name, (a, b) in pairs.items() if a != b]
    if not changed and before in (None, world_size):
        return []
    share = new.train.global_batch_size // world_size
    ranks = f"{before} -> {world_size}" if before not in (None, world_size) else str(world_size)
    return [
        f"elastic: {ranks} ranks x {share // new.train.micro_batch_size} micro-batches of "
        f"{new.train.micro_batch_size}, the global batch stays {new.train.global_batch_size}",
        *changed,
    ]


def _ranks_before(run: RunDirectory) -> int | None:
    """Ranks of the last session that wrote down its start."""
    return next((s["ranks"] for s in reversed(all_sessions(run)) if s["ranks"] is not None), None)


def divisors(n: int) -> list[int]:
    """All of a number, the smallest first."""
    return [size for size in range(1, n + 1) if n % size == 0]


def _holds(rule: Callable[..., None], *values: int) -> bool:
    try:
        rule(*values)
    except LayoutError:
        return False
    return True
