"""The layout on the nodes: which ranks share experts, and which links carry which traffic.

Pure functions of `ParallelDims` and `nodes`, the number of ranks on each node, such as [8, 8, 8, 4]; but for
`node_sizes`, which asks the ranks. Ranks are numbered node after node, as mesh.py: by_node needs it.
"""

from collections.abc import Callable, Sequence
from math import gcd

from parallel.ranks.collectives import gather_objects
from parallel.ranks.dims import LayoutError, ParallelDims
from parallel.ranks.rank import Ranks

UNREDUCED = "no reduction needed: each expert is on one rank"
SHOWN = 4  # groups, or ranks of a group, that are written out
Groups = list[list[int]]


def node_sizes(ranks: Ranks) -> list[int]:
    """How many ranks each node really has; every rank calls it.

    Raises:
        LayoutError: on all ranks, they are not numbered node after node.
    """
    return sizes_of(gather_objects((ranks.local_rank, ranks.local_world_size)))


def sizes_of(places: Sequence[tuple[int, int]]) -> list[int]:
    """Ranks of each node, from (place on its node, ranks of its node) of every rank.

    Raises:
        LayoutError: ranks are not numbered node after node.
    """
    sizes: list[int] = []
    while (first := sum(sizes)) < len(places):
        size = max(1, places[first][1])
        node = list(places[first : first + size])
        if node != [(place, size) for place in range(size)]:
            numbering = " ".join(f"{place} of {ranks}" for place, ranks in node[:SHOWN])
            raise LayoutError(
                f"ranks must be numbered node after node, but on their nodes those from {first} on are "
                f"{numbering}: start them with mpirun --map-by slot, or srun --distribution=block"
            )
        sizes.append(size)
    return sizes


def describe(dims: ParallelDims, nodes: Sequence[int], *, experts: bool = True, degree: int = 1) -> list[str]:
    """A layout in a few lines, with a warning where expert groups straddle nodes without need.

    Args:
        dims: the layout.
        nodes: ranks of each node.
        experts: whether the model has any.
        degree: over how many neighbouring ranks weights are gathered before rows travel.
    """
    home = home_of(nodes)
    everyone = (
        f"  {'dense gradients':<17}all {dims.world_size} ranks, {_span([range(dims.world_size)], home)}"
    )
    head = f"layout: {_count(dims.world_size, 'rank')} on {_nodes(nodes)}"
    if not experts:
        return [head, everyone]
    lines = [head, _line("experts", _groups(dims, dims.ep_ranks), home, alone="all of them on every rank")]
    if dims.expert_tensor_parallel_size > 1:
        lines[-1] += f"; an expert is cut over {dims.expert_tensor_parallel_size} neighbours"
    if degree > 1:
        lines += [_line("expert weights", _groups(dims, lambda r: dims.gather_ranks(r, degree)), home)]
    lines += [f"  {'all-to-all':<17}{_traffic(dims, home, degree)}"]
    lines += [
        _line("expert gradients", _groups(dims, dims.expert_dp_ranks), home, alone=UNREDUCED),
        everyone,
    ]
    return [*lines, *_warning(dims, nodes)]


def home_of(nodes: Sequence[int]) -> list[int]:
    """The node of every rank."""
    return [node for node, size in enumerate(nodes) for _ in range(size)]


def crossing_share(dims: ParallelDims, home: Sequence[int], degree: int = 1) -> float:
    """The share of the rows that leave their node, where every rank has as many for each peer."""
    size = dims.ep_size // degree
    pairs = (
        (home[r], home[other]) for r in range(dims.world_size) for other in dims.exchange_ranks(r, degree)
    )
    return sum(here != there for here, there in pairs) / (dims.world_size * size)


def straddling(dims: ParallelDims, nodes: Sequence[int]) -> Groups:
    """The expert groups that lie on several nodes, though so many ranks fit into one."""
    if dims.ep_size > max(nodes):
        return []
    home = home_of(nodes)
    return [group for group in _groups(dims, dims.ep_ranks) if home[group[0]] != home[group[-1]]]


def _groups(dims: ParallelDims, ranks_of: Callable[[int], list[int]]) -> Groups:
    """Every group once, by its first rank."""
    groups, seen = [], set[int]()
    for rank in range(dims.world_size):
        if rank not in seen:
            groups.append(group := ranks_of(rank))
            seen.update(group)
    return groups


def _line(name: str, groups: Groups, home: Sequence[int], *, alone: str = "") -> str:
    size, each = len(groups[0]), "each " if len(groups) > 1 else ""
    text = f"{_count(len(groups), 'group')} of {size}: {_shown(groups)}, {each}{_span(groups, home)}"
    return f"  {name:<17}{alone if alone and size == 1 else text}"


def _span(groups: Sequence[Sequence[int]], home: Sequence[int]) -> str:
    """Over how many nodes groups lie."""
    counts = sorted({len({home[rank] for rank in group}) for group in groups})
    return "inside a node" if counts == [1] else f"over {' or '.join(map(str, counts))} nodes"


def _shown(groups: Groups) -> str:
    """`[0-3] [4-7]`, or with a step `[0 4 8 12]`; of many the first and the last."""
    texts = [_ranks(group) for group in groups]
    return " ".join(texts if len(texts) <= SHOWN else [*texts[: SHOWN - 2], "...", texts[-1]])


def _ranks(group: list[int]) -> str:
    if len(group) > 1 and group == list(range(group[0], group[-1] + 1)):
        return f"[{group[0]}-{group[-1]}]"
    shown = group if len(group) <= SHOWN else [*group[: SHOWN - 2], "..", group[-1]]
    return f"[{' '.join(map(str, shown))}]"


def _traffic(dims: ParallelDims, home: Sequence[int], degree: int) -> str:
    size = dims.ep_size // degree
    if size == 1:
        return "none: no row leaves its rank"
    share = crossing_share(dims, home, degree)
    if share == 0:
        return "within the node" if home[0] == home[-1] else "within each node; no row crosses between nodes"
    links = "between nodes" if round(share * size) == size - 1 else "inside and between nodes"
    return f"{links}; {share:.0%} of the rows cross nodes under even load"


def _warning(dims: ParallelDims, nodes: Sequence[int]) -> list[str]:
    """A warning where expert groups straddle nodes, with the ep_size that avoids it."""
    if not (torn := straddling(dims, nodes)):
        return []
    common, ep_size, slices = gcd(*nodes), dims.ep_size, dims.expert_tensor_parallel_size
    fits = [n for n in range(slices, common + 1, slices) if common % n == 0 and n > 1]
    fix = f"as many ranks on every node, a multiple of {ep_size}, would do"
    if fits:
        inside = max((n for n in fits if n < ep_size), default=fits[0])
        fix = f"parallel.ep_size={inside} would keep them inside"
    return [
        f"  warning: {len(torn)} of {dims.dp_size} expert groups straddle nodes, such as {_ranks(torn[0])}, "
        f"though {ep_size} ranks fit into one: {fix}"
    ]


def _nodes(nodes: Sequence[int]) -> str:
    sizes = sorted(set(nodes))
    each = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return "one node" if len(nodes) == 1 else f"{len(nodes)} nodes of {each}"


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"
