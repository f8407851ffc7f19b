"""Which rows travel to which rank at one gather degree, and through which groups: pure arithmetic.

Legend: E experts, R ranks of the expert group, n slices of an expert, g gather degree, X = R / g ranks of the
exchange group, Q ranks of it in a node on each of A nodes.

A *peer* is a rank's number in its exchange group. A *cell* is the rows that one rank sends to one peer for
one expert; cells are counted, divided into chunks and put in order on the host. A *split* is all cells
between two ranks, as in `input_split_sizes` of torch's all-to-all. A *hop* is one all-to-all, and a *stage*
is where rows are before, between and after hops:

    flat          sender: X splits, one a peer -> X splits, one a source, at the experts
    hierarchical  sender: (q, a) -> in the node: (q, a), sent as (a, q) -> other nodes: (a, q), at the experts
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist

from parallel.experts.placement import ExpertParallel, ExpertSlice
from parallel.ranks.dims import LayoutError
from parallel.ranks.mesh import ExchangeGroups, Mesh


class Hop(NamedTuple):
    """One all-to-all on the way from a rank to the experts."""

    group: dist.ProcessGroup
    splits: list[int]  # rows of each split as it arrived at this stage
    order: list[int]  # in which the splits are sent
    send: list[int]  # rows for each rank of the group
    receive: list[int]  # rows from each rank of the group


@dataclass(frozen=True, kw_only=True)
class CommPlan:
    """The communication of one layer at one gather degree, as one rank takes part in it."""

    send_order: list[tuple[int, int]]  # (expert, peer) of each cell, as this rank sends them
    part: ExpertSlice  # of each of its experts, what this rank computes
    num_local: int  # experts that this rank computes
    split_cells: list[list[int]]  # by stage, the number of cells of each split
    hop_groups: list[
        tuple[dist.ProcessGroup, int]
    ]  # by hop, the group and its size; none where no row travels
    gather_group: dist.ProcessGroup | None  # over which weights are gathered
    gather_parts: list[tuple[range, ExpertSlice]]  # the experts and slice that each of its ranks holds

    def hops(self, cells: Sequence[Sequence[int]]) -> list[Hop]:
        """The all-to-alls of rows: `cells` has, by stage, the rows of each cell."""
        stages = [_sums(rows, counts) for rows, counts in zip(cells, self.split_cells, strict=True)]
        hops = []
        for number, (group, peers) in enumerate(self.hop_groups):
            splits, arriving = stages[number], stages[number + 1]
            order = list(range(len(splits)))
            if number > 0:
                order = transposed(self.hop_groups[number - 1][1], peers)
            send = _sums([splits[i] for i in order], [len(splits) // peers] * peers)
            receive = _sums(arriving, [len(arriving) // peers] * peers)
            hops.append(Hop(group, splits, order, send, receive))
        return hops


def transposed(rows: int, columns: int) -> list[int]:
    """The order that takes items numbered (row, column) to (column, row)."""
    return [row * columns + column for column in range(columns) for row in range(rows)]


def _sums(values: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Sums of consecutive values, of which each takes the next `counts`."""
    remaining = iter(values)
    return [sum(next(remaining) for _ in range(count)) for count in counts]


def make_comm_plan(placement: ExpertParallel, degree: int, *, hierarchical: bool) -> CommPlan:
    """Plan the communication of a placement at a gather degree.

    Raises:
        LayoutError: the degree or the hierarchy does not fit the mesh.
    """
    mesh = placement.mesh
    if mesh is None:
        return _without_hops(placement.part, None, [(placement.local_experts, placement.part)])
    groups = _groups(mesh, degree, hierarchical)
    held = [_held(mesh, rank, placement.num_experts) for rank in mesh.dims.ep_ranks(mesh.rank)]
    first = mesh.ep_rank - mesh.ep_rank % degree
    gather_parts = held[first : first + degree]
    part = _joined([part for _, part in gather_parts])
    if groups.exchange is None:
        return _without_hops(part, groups.gather, gather_parts)
    # by peer, the experts that it computes: those of all ranks whose weights it gathers
    experts = [
        range(held[rank][0].start, held[rank + degree - 1][0].stop) for rank in range(0, len(held), degree)
    ]
    own_peer = mesh.ep_rank // degree
    local = experts[own_peer]
    nodes = None
    if hierarchical and groups.in_node is not None:
        nodes = len(experts) // groups.ranks_in_node
    order = list(range(len(experts))) if nodes is None else transposed(nodes, groups.ranks_in_node)
    split_cells = [[len(experts[peer]) for peer in order], [len(local)] * len(experts)]
    hop_groups = [(groups.exchange, len(experts))]
    if nodes is not None:
        assert groups.in_node is not None
        assert groups.between_nodes is not None
        q = groups.ranks_in_node
        through_this_rank = [len(experts[node * q + own_peer % q]) for node in range(nodes)]
        split_cells.insert(1, through_this_rank * q)
        hop_groups = [(groups.in_node, q), (groups.between_nodes, nodes)]
    return CommPlan(
        send_order=[(expert, peer) for peer in order for expert in experts[peer]],
        part=part,
        num_local=len(local),
        split_cells=split_cells,
        hop_groups=hop_groups,
        gather_group=groups.gather,
        gather_parts=gather_parts,
    )


def _without_hops(
    part: ExpertSlice,
    gather_group: dist.ProcessGroup | None,
    gather_parts: list[tuple[range, ExpertSlice]],
) -> CommPlan:
    """The plan where no row travels: this rank holds every expert, or gathers its weights."""
    count = gather_parts[-1][0].stop - gather_parts[0][0].start
    return CommPlan(
        send_order=[(expert, 0) for expert in range(count)],
        part=part,
        num_local=count,
        split_cells=[[count]],
        hop_groups=[],
        gather_group=gather_group,
        gather_parts=gather_parts,
    )


def _held(mesh: Mesh, rank: int, num_experts: int) -> tuple[range, ExpertSlice]:
    """The experts of a rank, and its slice of them."""
    slices = mesh.dims.expert_tensor_parallel_size
    number = rank % slices
    return mesh.dims.local_experts(rank, num_experts), ExpertSlice(number, number + 1, slices)


def _joined(parts: list[ExpertSlice]) -> ExpertSlice:
    """Neighbouring slices of one expert, or all slices of several experts, as one slice."""
    first, last = parts[0], parts[-1]
    is_complete = first.first == 0 and last.last == last.of
    return ExpertSlice() if is_complete else ExpertSlice(first.first, last.last, first.of)


def _groups(mesh: Mesh, degree: int, hierarchical: bool) -> ExchangeGroups:
    """The mesh's groups for a degree, checked against the options."""
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
