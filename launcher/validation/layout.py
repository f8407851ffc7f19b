"""The layout of a run in a few lines, as `check --nproc` and `train` print it."""

from collections.abc import Sequence

from launcher.config.schema import RunConfig
from parallel.ranks.topology import describe


def layout(config: RunConfig, nodes: Sequence[int]) -> list[str]:
    """Who shares experts and what the links carry, for ranks on nodes such as [8, 8]; empty for one rank."""
    if (world_size := sum(nodes)) == 1:
        return []
    parallel, strategy = config.parallel, config.parallel.expert_exchange.strategy
    degree = {"dp": parallel.ep_size}.get(strategy, 1) if isinstance(strategy, str) else strategy
    return describe(parallel.dims(world_size), nodes, experts=config.model.moe is not None, degree=degree)


def full_nodes(world_size: int, ranks_per_node: int | None) -> list[int]:
    """Ranks on each node where all but the last are full; one node where nothing is said."""
    per_node = ranks_per_node or world_size
    full, rest = divmod(world_size, per_node)
    return [per_node] * full + [rest] * (rest > 0)


def print_lines(lines: Sequence[str]) -> None:
    """Print some lines, if there are any."""
    if lines:
        print("\n".join(lines), flush=True)
