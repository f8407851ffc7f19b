"""Who computes what at one gather degree, and through which groups rows reach them: pure arithmetic.

Legend: E experts, R ranks of the expert group, n slices of an expert, g gather degree, X = R / g ranks of the
exchange group, Q ranks of it in a node on each of A nodes.

A *place* is a rank's number in its exchange group. A *cell* is the rows that one rank sends to one place for
one expert; cells are counted, cut into pieces and put in order on the host. A *chunk* is all cells between
two ranks, and a *stage* is where rows are between two all-to-alls:

    flat          home: X chunks, one a place       ->       X chunks, one a source, at the experts
    hierarchical  home: (q, a) -> inside the node: (q, a), leaves as (a, q) -> across: (a, q), at the experts
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist

from parallel.experts.placement import ExpertParallel, ExpertSlice
from parallel.ranks.mesh import ExchangeGroups, LayoutError, Mesh


class Leg(NamedTuple):
    """One all-to-all of a journey."""

    group: dist.ProcessGroup
    chunks: list[int]  # rows of each chunk as it arrived at this stage
    order: list[int]  # in which the chunks leave
    send: list[int]  # rows for each rank of the group
    receive: list[int]  # rows from each rank of the group


@dataclass(frozen=True, kw_only=True)
class Route:
    """One gather degree seen from one rank."""

    leaving: list[tuple[int, int]]  # (expert, place) of each cell in the order in which they leave
    part: ExpertSlice  # what this rank computes of its experts
    num_local: int  # experts that this rank computes
    widths: list[list[int]]  # by stage, cells in each chunk
    links: list[tuple[dist.ProcessGroup, int]]  # by leg, the group and its ranks; none where nothing travels
    gather_group: dist.ProcessGroup | None  # over which weights come together
    gathered: list[tuple[range, ExpertSlice]]  # what each of its ranks holds

    def legs(self, cells: Sequence[Sequence[int]]) -> list[Leg]:
        """The all-to-alls of rows: cells is, by stage, the rows of each cell."""
        stages = [_fold(rows, widths) for rows, widths in zip(cells, self.widths, strict=True)]
        legs = []
        for number, (group, peers) in enumerate(self.links):
            chunks, arriving = stages[number], stages[number + 1]
            order = list(range(len(chunks))) if number == 0 else transposed(self.links[number - 1][1], peers)
            send = _fold([chunks[i] for i in order], [len(chunks) // peers] * peers)
            receive = _fold(arriving, [len(arriving) // peers] * peers)
            legs.append(Leg(group, chunks, order, send, receive))
        return legs


def transposed(rows: int, columns: int) -> list[int]:
    """The order that takes things numbered (row, column) to (column, row)."""
    return [row * columns + column for column in range(columns) for row in range(rows)]


def _fold(values: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Sums of consecutive values, `widths` of them at a time."""
    remaining = iter(values)
    return [sum(next(remaining) for _ in range(width)) for width in widths]


def make_route(placement: ExpertParallel, degree: int, *, hierarchical: bool) -> Route:
    """The route of a placement at a gather degree.

    Raises:
        LayoutError: the degree or the hierarchy does not fit the mesh.
    """
    mesh = placement.mesh
    if mesh is None:
        return _at_home(placement, placement.part, None, [(placement.local_experts, placement.part)])
    groups = _groups(mesh, degree, hierarchical)
    held = [_held(mesh, rank, placement.num_experts) for rank in mesh.dims.ep_ranks(mesh.rank)]
    first = mesh.ep_rank - mesh.ep_rank % degree
    gathered = held[first : first + degree]
    part = _joined([part for _, part in gathered])
    if groups.exchange is None:
        return _at_home(placement, part, groups.gather, gathered)
    # by place, the experts that it computes: those of all weights that come together there
    experts = [
        range(held[rank][0].start, held[rank + degree - 1][0].stop) for rank in range(0, len(held), degree)
    ]
    here, local = mesh.ep_rank // degree, experts[mesh.ep_rank // degree]
    nodes = None
    if hierarchical and groups.in_node is not None:
        nodes = len(experts) // groups.ranks_in_node
    order = list(range(len(experts))) if nodes is None else transposed(nodes, groups.ranks_in_node)
    widths = [[len(experts[place]) for place in order], [len(local)] * len(experts)]
    links = [(groups.exchange, len(experts))]
    if nodes is not None:
        assert groups.in_node is not None
        assert groups.across is not None
        q = groups.ranks_in_node
        through_here = [len(experts[node * q + here % q]) for node in range(nodes)]
        widths.insert(1, through_here * q)
        links = [(groups.in_node, q), (groups.across, nodes)]
    return Route(
        leaving=[(expert, place) for place in order for expert in experts[place]],
        part=part,
        num_local=len(local),
        widths=widths,
        links=links,
        gather_group=groups.gather,
        gathered=gathered,
    )


def _at_home(
    placement: ExpertParallel,
    part: ExpertSlice,
    gather_group: dist.ProcessGroup | None,
    gathered: list[tuple[range, ExpertSlice]],
) -> Route:
    """No row travels: every expert is here, or its weights come here."""
    count = gathered[-1][0].stop - gathered[0][0].start
    return Route(
        leaving=[(expert, 0) for expert in range(count)],
        part=part,
        num_local=count,
        widths=[[count]],
        links=[],
        gather_group=gather_group,
        gathered=gathered,
    )


def _held(mesh: Mesh, rank: int, num_experts: int) -> tuple[range, ExpertSlice]:
    """The experts of a rank, and its slice of them."""
    slices = mesh.dims.expert_slices
    here = rank % slices
    return mesh.dims.local_experts(rank, num_experts), ExpertSlice(here, here + 1, slices)


def _joined(parts: list[ExpertSlice]) -> ExpertSlice:
    """Neighbouring slices of one expert, or of several whole ones, as one."""
    first, last = parts[0], parts[-1]
    whole = first.first == 0 and last.last == last.of
    return ExpertSlice() if whole else ExpertSlice(first.first, last.last, first.of)


def _groups(mesh: Mesh, degree: int, hierarchical: bool) -> ExchangeGroups:
    """The mesh's groups for a degree, if they are as asked."""
    mesh.dims.check_gather_degree(degree)
    if degree not in mesh.exchange_groups:
        raise LayoutError(
            f"parallel.expert_exchange.strategy ({degree}) needs groups made with the mesh, which has "
            f"those for {sorted(mesh.exchange_groups)}: give build_mesh gather_degrees=({degree},)"
        )
    if hierarchical:
        if mesh.ranks_per_node is None:
            raise LayoutError(
                "parallel.expert_exchange.hierarchical needs the same number of ranks on every node, given "
                "to build_mesh as ranks_per_node; set hierarchical=false"
            )
        mesh.dims.check_hierarchy(mesh.ranks_per_node, degree)
    return mesh.exchange_groups[degree]
