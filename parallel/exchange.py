"""Rows meet their experts: rows travel to the weights, weights to the rows, or both half-way.

Legend: N rows (one a token and choice), M rows received, E experts, L local experts, C channels, R ranks of
the expert group, n slices of an expert, g gather degree.

At gather degree g (Hwang et al. 2023, "Tutel", section 3.1), g neighbouring ranks bring their weights
together, and a row goes to one rank of each set of g that then holds some of its expert: n / g of them where
g < n, whose outputs are parts of a sum. g = 1 moves rows alone, g = R weights alone. All give the same
numbers from the same parameters, so that a call may choose.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parallel.collectives import all_to_all
from parallel.expert import ExchangeOptions, ExpertParallel
from parallel.journey import Call, Compute, reorder
from parallel.route import Route, make_route
from parallel.weights import gather_weights, whole_numel

__all__ = ["Compute", "ExchangeOptions", "ExpertExchange"]


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

    def run(
        self,
        compute: Compute,
        weights: Sequence[nn.Parameter],
        rows: Tensor,
        counts: Tensor,
        *,
        keys: Tensor | None = None,
        rows_bound: int = 0,
        static_count: int | None = None,
        options: ExchangeOptions | None = None,
    ) -> tuple[Tensor, int]:
        """Let every row be computed by its expert, differentiably in rows and weights.

        Waits for the device once, for the counts; not at all if `static_count` is given.

        Args:
            compute: the experts; the weights and the part of each expert are what this call brought together.
            weights: marked parameters of this rank.
            rows: (N, C), sorted by expert.
            counts: (E,) int64, rows of each expert; they sum to N.
            keys: (N,) that travel with the rows, exactly.
            rows_bound: rows that a rank sends at most, equal on all ranks, by which `auto` chooses.
            static_count: rows of every expert, on every rank, if they are padded to that.
            options: of this call, equal on all ranks; None for the placement's.

        Returns:
            (N, C) in the order of `rows`, and the rows that this rank computed.

        Raises:
            LayoutError: the options do not fit the mesh.
        """
        options = options or self.placement.options
        degree = self._choose(options, weights, rows, keys, rows_bound)
        route = self._route(degree, options)
        cells = _static_cells(route, static_count) if static_count is not None else _cells(route, counts)
        whole = gather_weights(weights, route.gathered, route.gather_group)
        call = Call(route, cells, options, compute, whole)
        return call.run(rows, keys), sum(cells[-1])

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
        rows: Tensor,
        keys: Tensor | None,
        rows_bound: int,
    ) -> int:
        """The gather degree that moves the fewest bytes, by what all ranks know alike.

        A rank receives (g - 1) / R of all weights, and as many rows as it sends: rows_bound, n / g times
        where an expert stays sliced, of which one in X = R / g stays; there and back. Backward doubles both.
        """
        ranks, slices = self.placement.ep_size, self.placement.part.of
        width = 2 if options.wire_dtype == "bf16" and rows.dtype == torch.float32 else rows.element_size()
        row = 2 * rows.shape[1] * width + (0 if keys is None else keys.element_size())
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
    experts = [expert for expert, _ in route.leaving]
    in_order = experts == list(range(len(experts)))
    stages = [counts if in_order else counts[torch.tensor(experts, device=counts.device)]]
    for leg in route.legs([[1] * sum(widths) for widths in route.widths]):
        leaving = reorder(stages[-1], leg.chunks, leg.order)
        stages.append(all_to_all(leaving, leg.send, leg.receive, leg.group))
    found = torch.cat(stages).tolist()  # waits for the device
    ends = [0]
    for stage in stages:
        ends.append(ends[-1] + len(stage))
    return [found[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]


def _static_cells(route: Route, count: int) -> list[list[int]]:
    """The same, where every cell is known to have `count` rows."""
    return [[count] * sum(widths) for widths in route.widths]
