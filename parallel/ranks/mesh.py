"""Which ranks share what: the process groups of a layout, whose arithmetic is in `dims.py`.

With world_size = 4 and ep_size = 2, every rank has its own images (data parallel over the world), and

    rank        0       1       2       3
    experts   0 .. 3  4 .. 7  0 .. 3  4 .. 7      num_experts = 8
    ep group  [ 0       1 ]   [ 2       3 ]       tokens travel inside it by all-to-all
    expert-dp [ 0 --------------2 ] [ 1 --------------3 ]   gradients of one expert are reduced over it

Expert-parallel ranks are contiguous, so that an expert group stays inside a node where it fits. With
expert_tensor_parallel_size = n the hidden channels of each expert are sliced over n neighbouring ranks, a
*block* of ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from parallel.ranks.collectives import gather_objects, new_group
from parallel.ranks.dims import LayoutError, ParallelDims, by_node


@dataclass(frozen=True, kw_only=True)
class ExchangeGroups:
    """Groups of this rank for one gather degree; a group of one rank is None.

    `in_node` and `between_nodes` are the groups of the two hops of a hierarchical exchange; None where the
    exchange group lies on one node, has one rank a node, or does not divide over its nodes.
    """

    gather: dist.ProcessGroup | None = None
    exchange: dist.ProcessGroup | None = None
    in_node: dist.ProcessGroup | None = None
    between_nodes: dist.ProcessGroup | None = None
    ranks_in_node: int = 1


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A layout seen from one rank, with its process groups; they are None where there is only one process."""

    dims: ParallelDims
    rank: int = 0
    ep_group: dist.ProcessGroup | None = None
    expert_dp_group: dist.ProcessGroup | None = None
    ranks_per_node: int | None = None  # None: not known, or not the same on every node
    exchange_groups: Mapping[int, ExchangeGroups] = field(default_factory=dict)  # by gather degree

    @property
    def ep_rank(self) -> int:
        """The number of this rank in its expert-parallel group."""
        return self.rank % self.dims.ep_size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and writes for the run."""
        return self.rank == 0


def build_mesh(
    dims: ParallelDims, *, ranks_per_node: int | None = None, gather_degrees: Sequence[int] = ()
) -> Mesh:
    """Make the groups of a layout; every rank of the default process group calls it.

    Args:
        dims: the layout.
        ranks_per_node: of this rank's node (`Ranks.local_world_size`); None leaves hierarchical exchange out.
        gather_degrees: that a run may use besides 1, expert_tensor_parallel_size and ep_size.

    Raises:
        LayoutError: a gather degree does not fit.
    """
    rank = dist.get_rank()
    for degree in gather_degrees:
        dims.check_gather_degree(degree)
    sizes = set(gather_objects(ranks_per_node))
    per_node = ranks_per_node if len(sizes) == 1 else None
    ep_group = _own_group(dims, dims.ep_ranks, rank)
    groups = {}
    for degree in sorted({1, dims.expert_tensor_parallel_size, dims.ep_size, *gather_degrees}):
        groups[degree] = _exchange_groups(dims, degree, per_node, rank, ep_group)
    return Mesh(
        dims=dims,
        rank=rank,
        ep_group=ep_group,
        expert_dp_group=_own_group(dims, dims.expert_dp_ranks, rank),
        ranks_per_node=per_node,
        exchange_groups=groups,
    )


def neighbour_group(mesh: Mesh, size: int) -> dist.ProcessGroup | None:
    """The group of the `size` consecutive ranks around this one; None for one rank.

    Every rank calls it, with the same sizes in the same order.

    Raises:
        LayoutError: `size` does not divide the number of ranks.
    """
    if mesh.dims.world_size % size:
        raise LayoutError(
            f"{size} consecutive ranks must divide the number of ranks ({mesh.dims.world_size})"
        )
    if size == 1:
        return None
    return _own_group(mesh.dims, lambda rank: mesh.dims.gather_ranks(rank, size), mesh.rank)


def _exchange_groups(
    dims: ParallelDims, degree: int, per_node: int | None, rank: int, ep_group: dist.ProcessGroup
) -> ExchangeGroups:
    """The groups of one gather degree; the expert-parallel group serves where it is one of them."""

    def group_of(size: int, ranks_of: Callable[[int], list[int]]) -> dist.ProcessGroup | None:
        if size == 1:
            return None
        return ep_group if size == dims.ep_size else _own_group(dims, ranks_of, rank)

    own = dims.exchange_ranks(rank, degree)
    gather = group_of(degree, lambda r: dims.gather_ranks(r, degree))
    exchange = group_of(len(own), lambda r: dims.exchange_ranks(r, degree))
    if per_node is None or not _is_grid(dims, degree, per_node):
        return ExchangeGroups(gather=gather, exchange=exchange)

    def in_node(r: int) -> list[int]:
        return next(part for part in by_node(dims.exchange_ranks(r, degree), per_node) if r in part)

    def between_nodes(r: int) -> list[int]:
        place = in_node(r).index(r)
        return [part[place] for part in by_node(dims.exchange_ranks(r, degree), per_node)]

    stages = _own_group(dims, in_node, rank), _own_group(dims, between_nodes, rank)
    if 1 in (len(in_node(rank)), len(between_nodes(rank))):
        return ExchangeGroups(gather=gather, exchange=exchange)
    return ExchangeGroups(
        gather=gather,
        exchange=exchange,
        in_node=stages[0],
        between_nodes=stages[1],
        ranks_in_node=len(in_node(rank)),
    )


def _is_grid(dims: ParallelDims, degree: int, per_node: int) -> bool:
    """Whether every exchange group divides over its nodes, and some has two ranks on two nodes."""
    try:
        dims.check_hierarchy(per_node, degree)
    except LayoutError:
        return False
    grids = [by_node(dims.exchange_ranks(rank, degree), per_node) for rank in range(dims.world_size)]
    return any(len(grid) > 1 and len(grid[0]) > 1 for grid in grids)


def _own_group(dims: ParallelDims, ranks_of: Callable[[int], list[int]], rank: int) -> dist.ProcessGroup:
    """Make every group in the same order on every rank, as new_group wants it; return the one of `rank`."""
    groups = sorted({tuple(ranks_of(r)) for r in range(dims.world_size)})
    made = {ranks: new_group(ranks) for ranks in groups}
    return made[tuple(ranks_of(rank))]
