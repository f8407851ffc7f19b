"""Rows meet their experts: rows travel to the weights, weights to the rows, or both half-way.

Legend: N rows (one a token and choice), M rows received, E experts, L local experts, C channels, R ranks of
the expert group, n slices of an expert, g gather degree.

At gather degree g (Hwang et al. 2023, "Tutel", section 3.1), g neighbouring ranks bring their weights
together, and a row goes to one rank of each set of g that then holds some of its expert: n / g of them where
g < n, whose outputs are parts of a sum. g = 1 moves rows alone, g = R weights alone. All give the same
numbers from the same parameters, so that a call may choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.experts.comm_plan import Route, make_route
from parallel.experts.gather import gather_weights, whole_numel
from parallel.experts.pipeline import Call, Compute, reorder
from parallel.experts.placement import ExchangeOptions, ExpertParallel
from parallel.ranks.collectives import all_to_all
from parallel.ranks.host import read

__all__ = ["Compute", "Counted", "ExchangeOptions", "ExpertExchange"]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One call whose rows are counted: their way, and how many there are where the host knows it."""

    route: Route
    options: ExchangeOptions
    counts: Tensor  # (E,) int64, rows of each expert
    cells: list[list[int]] | None  # by stage, rows of each cell; None where no row travels

    @property
    def rows(self) -> int | None:
        """N, or None where the host does not know it."""
        if self.cells is None:
            return None
        experts = (expert for expert, _ in self.route.leaving)
        return sum(dict(zip(experts, self.cells[0], strict=True)).values())  # an expert may be at many places


class ExpertExchange:
    """One layer's exchange; it holds no state of a call.

    Args:
        placement: where the experts are.

    Raises:
        LayoutError: the placement's own options do not fit its mesh.
    """

    def __init__(self, placement: ExpertParallel) -> None:
        self.placement = placement
        self._routes: dict[tuple[int, bool], Route] = {}
        for degree in self._candidates(placement.options):
            self._route(degree, placement.options)

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
    ) -> Counted:
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
        route = self._route(self._choose(options, weights, like, keyed, rows_bound), options)
        cells = None
        if route.links:
            cells = _cells(route, counts) if static_count is None else _static_cells(route, static_count)
        return Counted(route=route, options=options, counts=counts, cells=cells)

    def run(
        self,
        compute: Compute,
        weights: Sequence[nn.Parameter],
        rows: Tensor,
        counted: Counted,
        *,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let every row be computed by its expert, differentiably in rows and weights.

        Args:
            compute: the experts; the weights and the part of each expert are what this call brought together.
            weights: marked parameters of this rank.
            rows: (N, C), sorted by expert. Where no row travels there may be more, which only pad.
            counted: by `count`, with the same weights.
            keys: (N,) that travel with the rows, exactly.

        Returns:
            (N, C) in the order of `rows`; and how many rows this rank computed, without those that only pad:
            scalar int64.
        """
        route, cells = counted.route, counted.cells
        whole = gather_weights(weights, route.gathered, route.gather_group)
        if cells is None:
            return compute(whole, rows, counted.counts, keys, route.part), counted.counts.sum()
        received = torch.full((), sum(cells[-1]), dtype=torch.int64, device=rows.device)
        return Call(route, cells, counted.options, compute, whole).run(rows, keys), received

    def _candidates(self, options: ExchangeOptions) -> list[int]:
        """The gather degrees that a strategy may take."""
        ranks, part = self.placement.ep_size, self.placement.part
        if self.placement.mesh is None:
            return [1]
        by_name = {"ep": [1], "dp": [ranks], "auto": sorted({1, part.of, ranks})}
        return by_name[options.strategy] if isinstance(options.strategy, str) else [options.strategy]

    def _route(self, degree: int, options: ExchangeOptions) -> Route:
        asked = degree, options.hierarchical
        if asked not in self._routes:
            self._routes[asked] = make_route(self.placement, degree, hierarchical=options.hierarchical)
        return self._routes[asked]

    def _choose(
        self,
        options: ExchangeOptions,
        weights: Sequence[nn.Parameter],
        like: Tensor,
        keyed: bool,
        rows_bound: int,
    ) -> int:
        """The gather degree that moves the fewest bytes, by what all ranks know alike.

        A rank receives (g - 1) / R of all weights, and as many rows as it sends: rows_bound, n / g times
        where an expert stays sliced, of which one in X = R / g stays; there and back. Backward doubles both.
        """
        ranks, slices = self.placement.ep_size, self.placement.part.of
        width = 2 if options.wire_dtype == "bf16" and like.dtype == torch.float32 else like.element_size()
        row = 2 * like.shape[-1] * width + (8 if keyed else 0)
        experts = sum(whole_numel(weight) * weight.element_size() for weight in weights)

        def moved(degree: int) -> float:
            copies, stay = max(1, slices // degree), degree / ranks
            weight_bytes = self.placement.num_experts * experts * (degree - 1) / ranks
            return weight_bytes + rows_bound * copies * row * (1 - stay)

        return min(self._candidates(options), key=moved)


def _cells(route: Route, counts: Tensor) -> list[list[int]]:
    """By stage, the rows of each cell: every rank tells the places, and those in between, what will come.

    Args:
        counts: (E,).
    """
    stages = [_in_order(counts, [expert for expert, _ in route.leaving])]
    for leg in route.legs([[1] * sum(widths) for widths in route.widths]):
        leaving = reorder(stages[-1], leg.chunks, leg.order)
        stages.append(all_to_all(leaving, leg.send, leg.receive, leg.group))
    found = read(torch.cat(stages)).tolist()
    ends = [0]
    for stage in stages:
        ends.append(ends[-1] + len(stage))
    return [found[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]


def _in_order(counts: Tensor, experts: list[int]) -> Tensor:
    """counts[experts] by whole runs of neighbours, which needs no index on the device."""
    starts = [i for i, expert in enumerate(experts) if i == 0 or expert != experts[i - 1] + 1]
    runs = zip(starts, [*starts[1:], len(experts)], strict=True)
    pieces = [counts[experts[start] : experts[start] + stop - start] for start, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _static_cells(route: Route, count: int) -> list[list[int]]:
    """The same, where every cell is known to have `count` rows."""
    return [[count] * sum(widths) for widths in route.widths]
