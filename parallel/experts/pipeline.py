"""One call of an exchange: rows on their way to the experts and back, in pieces that overlap with computing.

Legend: N rows of this rank, M rows received, C channels. Cells, chunks and stages are those of route.py.
"""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from parallel.experts.comm_plan import Leg, Route, transposed
from parallel.experts.placement import ExchangeOptions, ExpertSlice
from parallel.ranks.collectives import Flight

# weights, rows (M, C) sorted by expert, rows of each, keys (M,) or None, the part of each expert -> (M, C).
# Rows of each are numbers, or (L,) on the device where the host does not know them.
Compute = Callable[[Sequence[Tensor], Tensor, list[int] | Tensor, Tensor | None, ExpertSlice], Tensor]
Journey = Generator[None, None, Tensor]


def reorder(rows: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """Chunks of rows in another order: gathers alone, forward and backward, hence deterministic."""
    if list(order) == list(range(len(sizes))):
        return rows
    chunks = rows.split(list(sizes))
    return torch.cat([chunks[i] for i in order])


class Call:
    """One call: rows in pieces, each on its journey, one travelling while another is computed.

    Piece i of m of a cell of c rows is its rows from c * i // m to c * (i + 1) // m: both ends know.
    """

    def __init__(
        self,
        route: Route,
        cells: list[list[int]],
        options: ExchangeOptions,
        compute: Compute,
        weights: Sequence[Tensor],
    ) -> None:
        self.route, self.cells, self.options = route, cells, options
        self.compute, self.weights = compute, weights
        self.pieces = options.overlap if route.links else 1
        self.experts = [expert for expert, _ in route.leaving]
        self.counts = dict(zip(self.experts, cells[0], strict=True))  # of this rank's rows, by expert

    def run(self, rows: Tensor, keys: Tensor | None) -> Tensor:
        """Send all rows out, and have them back in their order."""
        rows_of = self._cut(rows)
        keys_of = [None] * self.pieces if keys is None else self._cut(keys)
        journeys = [self._journey(i, rows_of[i], keys_of[i]) for i in range(self.pieces)]
        return self._collect(_interleave(journeys))

    def _cells_of(self, piece: int) -> list[list[int]]:
        return [[self._share(count, piece) for count in stage] for stage in self.cells]

    def _share(self, count: int, piece: int) -> int:
        return count * (piece + 1) // self.pieces - count * piece // self.pieces

    def _cut(self, rows: Tensor) -> list[Tensor]:
        """Rows (N, ...) of the home order -> those of each piece, in the order in which they leave."""
        parts = range(self.pieces)
        counts = [self.counts[expert] for expert in sorted(self.counts)]
        if self.pieces == 1:
            return [reorder(rows, counts, self.experts)]
        chunks = rows.split([self._share(count, piece) for count in counts for piece in parts])
        return [torch.cat([chunks[e * self.pieces + piece] for e in self.experts]) for piece in parts]

    def _collect(self, returned: list[Tensor]) -> Tensor:
        """The inverse of `_cut`, with the parts of an expert's output summed in the order of their places."""
        if self.pieces == 1 and self.experts == list(range(len(self.counts))):
            return returned[0]
        home: dict[tuple[int, int], Tensor] = {}
        by_place = sorted(range(len(self.experts)), key=self.route.leaving.__getitem__)
        for piece, rows in enumerate(returned):
            chunks = rows.split(self._cells_of(piece)[0])
            for cell in by_place:
                place = self.experts[cell], piece
                home[place] = home[place] + chunks[cell] if place in home else chunks[cell]
        return torch.cat([home[place] for place in sorted(home)])

    def _journey(self, piece: int, rows: Tensor, keys: Tensor | None) -> Journey:
        """Out, through the experts and back; it yields whenever rows are under way."""
        cells = self._cells_of(piece)
        legs, local = self.route.legs(cells), self.route.num_local
        sources = len(cells[-1]) // local
        by_expert, by_source = transposed(sources, local), transposed(local, sources)
        counts = [sum(cells[-1][expert::local]) for expert in range(local)]

        travelling = [rows] if keys is None else [rows, keys]
        arrived = yield from self._travel(travelling, legs, back=False)
        here = [reorder(tensor, cells[-1], by_expert) for tensor in arrived]
        out = self.compute(self.weights, here[0], counts, None if keys is None else here[1], self.route.part)
        out = reorder(out, [cells[-1][cell] for cell in by_expert], by_source)
        (home,) = yield from self._travel([out], legs, back=True)
        return home

    def _travel(
        self, tensors: list[Tensor], legs: list[Leg], *, back: bool
    ) -> Generator[None, None, list[Tensor]]:
        """All legs of the way out, or of the way back."""
        dtypes = [tensor.dtype for tensor in tensors]
        if legs and self.options.wire_dtype == "bf16":
            tensors = [t.bfloat16() if t.dtype == torch.float32 else t for t in tensors]
        for leg in reversed(legs) if back else legs:
            send, receive = (leg.receive, leg.send) if back else (leg.send, leg.receive)
            if not back:
                tensors = [reorder(tensor, leg.chunks, leg.order) for tensor in tensors]
            flights = [Flight(send, receive, leg.group) for _ in tensors]
            under_way = [flight.start(tensor) for flight, tensor in zip(flights, tensors, strict=True)]
            yield
            tensors = [flight.finish(tensor) for flight, tensor in zip(flights, under_way, strict=True)]
            if back:
                leaving = [leg.chunks[chunk] for chunk in leg.order]
                inverse = sorted(range(len(leg.order)), key=leg.order.__getitem__)
                tensors = [reorder(tensor, leaving, inverse) for tensor in tensors]
        return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]


def _interleave(journeys: list[Journey]) -> list[Tensor]:
    """Run all journeys, each a step behind the one before: a new one sends before an older one computes.

    Every rank does the same, and autograd the exact reverse: the order of collectives is one.
    """
    arrived: dict[int, Tensor] = {}
    tick = 0
    while len(arrived) < len(journeys):
        for number in reversed(range(min(tick + 1, len(journeys)))):
            if number not in arrived:
                try:
                    next(journeys[number])
                except StopIteration as home:
                    arrived[number] = home.value
        tick += 1
    return [arrived[number] for number in range(len(journeys))]
