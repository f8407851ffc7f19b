"""The expert exchange: rows travel to the experts' ranks, weights to the rows' ranks, or both half-way.

A call reads in this order:
1. `ExpertExchange.count`: ranks tell each other how many rows will come (`RowCounts`);
2. `ExpertExchange.run`: weights are gathered where the plan says so (gather.py);
3. `ChunkedExchange.run` (pipeline.py): rows go out, are computed and come back in overlapping chunks;
4. `AsyncAllToAll` (ranks/collectives.py): each hop of a chunk is issued, and waited for later.
Which rows take which hops is a `CommPlan` (comm_plan.py).

At gather degree g (Hwang et al. 2023, "Tutel", section 3.1), g neighbouring ranks gather their weights, and a
row goes to one rank of each set of g that then holds some of its expert: n / g of them where g < n, whose
outputs are parts of a sum. g = 1 moves rows alone, g = R weights alone. All give the same numbers from the
same parameters, so that a call may choose.

Legend: N rows (one a token and choice), E experts, C channels, R ranks of the expert group, n slices of an
expert, g gather degree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.experts.comm_plan import CommPlan, make_comm_plan
from parallel.experts.gather import expert_numel, gather_expert_weights
from parallel.experts.gather_degree import bytes_of_row, candidate_degrees, cheapest_degree
from parallel.experts.options import ExchangeOptions
from parallel.experts.pipeline import ChunkedExchange, Compute, reorder
from parallel.experts.placement import ExpertParallel
from parallel.ranks.collectives import all_to_all
from parallel.ranks.host import read


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """How many rows one call sends where; what `ExpertExchange.run` needs of `count`."""

    plan: CommPlan
    options: ExchangeOptions
    counts: Tensor  # (E,) int64, rows of each expert
    cells: list[list[int]] | None  # by stage, rows of each cell; None where no row travels

    @property
    def rows(self) -> int | None:
        """N, or None where the host does not know it."""
        if self.cells is None:
            return None
        experts = (expert for expert, _ in self.plan.send_order)
        return sum(dict(zip(experts, self.cells[0], strict=True)).values())  # an expert may be at many peers


class ExpertExchange:
    """One layer's exchange; it holds no state of a call.

    Args:
        placement: where the experts are.

    Raises:
        LayoutError: the placement's own options do not fit its mesh.
    """

    def __init__(self, placement: ExpertParallel) -> None:
        self.placement = placement
        self._plans: dict[tuple[int, bool], CommPlan] = {}
        options, slices = placement.options, placement.part.of
        for degree in candidate_degrees(
            options.strategy, ep_size=placement.ep_size, expert_tensor_parallel_size=slices
        ):
            self._plan(degree, options)

    def count(
        self,
        weights: Sequence[nn.Parameter],
        counts: Tensor,
        *,
        like: Tensor,
        keyed: bool = False,
        rows_bound: int = 0,
        static_count: int | None = None,
        options: ExchangeOptions | None = None,
    ) -> RowCounts:
        """Tell all ranks how many rows will come.

        Waits for the device once, for the counts; not at all where no row travels or if `static_count` is
        given.

        Args:
            weights: marked parameters of this rank.
            counts: (E,) int64, rows of each expert.
            like: (..., C) of the dtype of the rows.
            keyed: whether keys travel with the rows.
            rows_bound: rows that a rank sends at most, equal on all ranks, by which `auto` chooses.
            static_count: rows of every expert, on every rank, if they are padded to that.
            options: of this call, equal on all ranks; None for the placement's.

        Raises:
            LayoutError: the options do not fit the mesh.
        """
        options = options or self.placement.options
        degree = degree_of(self.placement, options, weights, like=like, keyed=keyed, rows_bound=rows_bound)
        plan = self._plan(degree, options)
        cells = None
        if plan.hop_groups:
            cells = _static_cells(plan, static_count) if static_count is not None else _cells(plan, counts)
        return RowCounts(plan=plan, options=options, counts=counts, cells=cells)

    def run(
        self,
        compute: Compute,
        weights: Sequence[nn.Parameter],
        rows: Tensor,
        row_counts: RowCounts,
        *,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let every row be computed by its expert, differentiably in rows and weights.

        Args:
            compute: the experts; it gets the gathered weights and the slice of each expert that they are.
            weights: marked parameters of this rank.
            rows: (N, C), sorted by expert. Where no row travels there may be more, which only pad.
            row_counts: from `count`, with the same weights.
            keys: (N,) that travel with the rows, exactly.

        Returns:
            (N, C) in the order of `rows`; and how many rows this rank computed, without those that only pad:
            scalar int64.
        """
        plan, cells = row_counts.plan, row_counts.cells
        gathered = gather_expert_weights(weights, plan.gather_parts, plan.gather_group)
        if cells is None:
            out = compute(gathered, rows, row_counts.counts, keys, plan.part)
            return out, row_counts.counts.sum()
        received = torch.full((), sum(cells[-1]), dtype=torch.int64, device=rows.device)
        return ChunkedExchange(plan, cells, row_counts.options, compute, gathered).run(rows, keys), received

    def _plan(self, degree: int, options: ExchangeOptions) -> CommPlan:
        key = degree, options.hierarchical
        if key not in self._plans:
            self._plans[key] = make_comm_plan(self.placement, degree, hierarchical=options.hierarchical)
        return self._plans[key]


def degree_of(
    placement: ExpertParallel,
    options: ExchangeOptions,
    weights: Sequence[nn.Parameter],
    *,
    like: Tensor,
    keyed: bool,
    rows_bound: int,
) -> int:
    """The gather degree that moves the fewest bytes, by what all ranks know alike: see `count`."""
    expert_bytes = sum(expert_numel(weight) * weight.element_size() for weight in weights)
    return cheapest_degree(
        options.strategy,
        ep_size=placement.ep_size,
        expert_tensor_parallel_size=placement.part.of,
        weight_bytes=placement.num_experts * expert_bytes,
        row_bytes=bytes_of_row(
            options, channels=like.shape[-1], element_size=like.element_size(), keyed=keyed
        ),
        rows=rows_bound,
    )


def _cells(plan: CommPlan, counts: Tensor) -> list[list[int]]:
    """By stage, the rows of each cell: every rank sends its counts the way that its rows will take.

    Args:
        plan: of the rows.
        counts: (E,).
    """
    stages = [_in_order(counts, [expert for expert, _ in plan.send_order])]
    for hop in plan.hops([[1] * sum(cells) for cells in plan.split_cells]):
        sent = reorder(stages[-1], hop.splits, hop.order)
        stages.append(all_to_all(sent, hop.send, hop.receive, hop.group))
    values = iter(read(torch.cat(stages)).tolist())
    return [[next(values) for _ in range(len(stage))] for stage in stages]


def _in_order(counts: Tensor, experts: list[int]) -> Tensor:
    """counts[experts] by runs of neighbours, which needs no index on the device."""
    starts = [i for i, expert in enumerate(experts) if i == 0 or expert != experts[i - 1] + 1]
    runs = zip(starts, [*starts[1:], len(experts)], strict=True)
    pieces = [counts[experts[start] : experts[start] + stop - start] for start, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _static_cells(plan: CommPlan, count: int) -> list[list[int]]:
    """By stage, the rows of each cell, where every cell is known to have `count` rows."""
    return [[count] * sum(cells) for cells in plan.split_cells]
