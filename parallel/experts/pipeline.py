"""One call of an exchange: rows go to their experts and back in chunks, which overlap with computing.

    chunk 0   send | receive, compute, send back              | receive
    chunk 1        | send              | receive, compute, send back | receive

1. `run` divides the rows into chunks: every cell (comm_plan.py) is divided evenly.
2. `_exchange_chunk` takes one chunk through all hops to the experts, computes it and takes it back. It is a
   generator that yields whenever its rows are in flight.
3. `_interleave` resumes the chunks in turn, so that one is in flight while another is computed.
4. `_merge` puts the outputs into the order of the rows.

Legend: N rows of this rank, M rows received, L experts that this rank computes, C channels.
"""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from parallel.experts.comm_plan import CommPlan, Hop, transposed
from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertSlice
from parallel.ranks.collectives import AsyncAllToAll

# weights, rows (M, C) sorted by expert, rows of each expert, keys (M,) or None, the slice of each expert that
# the weights are -> (M, C). Rows of each expert are ints, or (L,) on the device where the host does not know.
Compute = Callable[[Sequence[Tensor], Tensor, list[int] | Tensor, Tensor | None, ExpertSlice], Tensor]
ChunkTask = Generator[None, None, Tensor]


class ChunkedExchange:
    """One call of an exchange.

    Chunk i of m takes, of a cell of c rows, those from c * i // m to c * (i + 1) // m: sender and receiver
    know its size without a message.

    Args:
        plan: which rows travel where.
        cells: by stage, the rows of each cell.
        options: of the exchange.
        compute: the experts.
        weights: of the experts that this rank computes, gathered.
    """

    def __init__(
        self,
        plan: CommPlan,
        cells: list[list[int]],
        options: ExchangeOptions,
        compute: Compute,
        weights: Sequence[Tensor],
    ) -> None:
        self.plan, self.cells, self.options = plan, cells, options
        self.compute, self.weights = compute, weights
        self.num_chunks = options.overlap if plan.hop_groups else 1
        self.experts = [expert for expert, _ in plan.send_order]
        self.counts = dict(zip(self.experts, cells[0], strict=True))  # of this rank's rows, by expert

    def run(self, rows: Tensor, keys: Tensor | None) -> Tensor:
        """Compute rows (N, C), sorted by expert, and return the outputs in their order: (N, C)."""
        row_chunks = self._divide(rows)
        key_chunks = [None] * self.num_chunks if keys is None else self._divide(keys)
        tasks = [self._exchange_chunk(i, row_chunks[i], key_chunks[i]) for i in range(self.num_chunks)]
        return self._merge(_interleave(tasks))

    def _exchange_chunk(self, chunk: int, rows: Tensor, keys: Tensor | None) -> ChunkTask:
        """Send one chunk to the experts, compute what arrived, and return what comes back."""
        cells = self._cells_of(chunk)
        hops, local = self.plan.hops(cells), self.plan.num_local
        sources = len(cells[-1]) // local
        by_expert, by_source = transposed(sources, local), transposed(local, sources)
        counts = [sum(cells[-1][expert::local]) for expert in range(local)]

        sent = [rows] if keys is None else [rows, keys]
        arrived = yield from self._travel(sent, hops, back=False)
        inputs = [reorder(tensor, cells[-1], by_expert) for tensor in arrived]
        keys = None if keys is None else inputs[1]
        out = self.compute(self.weights, inputs[0], counts, keys, self.plan.part)
        out = reorder(out, [cells[-1][cell] for cell in by_expert], by_source)
        (returned,) = yield from self._travel([out], hops, back=True)
        return returned

    def _travel(
        self, tensors: list[Tensor], hops: list[Hop], *, back: bool
    ) -> Generator[None, None, list[Tensor]]:
        """Take tensors through all hops to the experts, or `back`; yields while they are in flight."""
        dtypes = [tensor.dtype for tensor in tensors]
        if hops and self.options.communication_dtype == "bf16":
            tensors = [t.bfloat16() if t.dtype == torch.float32 else t for t in tensors]
        for hop in reversed(hops) if back else hops:
            send, receive = (hop.receive, hop.send) if back else (hop.send, hop.receive)
            if not back:
                tensors = [reorder(tensor, hop.splits, hop.order) for tensor in tensors]
            exchanges = [AsyncAllToAll(send, receive, hop.group) for _ in tensors]
            handles = [exchange.issue(tensor) for exchange, tensor in zip(exchanges, tensors, strict=True)]
            yield
            tensors = [exchange.wait(handle) for exchange, handle in zip(exchanges, handles, strict=True)]
            if back:
                sizes = [hop.splits[split] for split in hop.order]
                inverse = sorted(range(len(hop.order)), key=hop.order.__getitem__)
                tensors = [reorder(tensor, sizes, inverse) for tensor in tensors]
        return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]

    def _divide(self, rows: Tensor) -> list[Tensor]:
        """Rows (N, ...) sorted by expert -> those of each chunk, in the order in which they are sent."""
        chunks = range(self.num_chunks)
        counts = [self.counts[expert] for expert in sorted(self.counts)]
        if self.num_chunks == 1:
            return [reorder(rows, counts, self.experts)]
        pieces = rows.split([self._chunk_size(count, chunk) for count in counts for chunk in chunks])
        return [torch.cat([pieces[e * self.num_chunks + chunk] for e in self.experts]) for chunk in chunks]

    def _merge(self, returned: list[Tensor]) -> Tensor:
        """The inverse of `_divide`; outputs of an expert's slices are summed in the order of their peers."""
        if self.num_chunks == 1 and self.experts == list(range(len(self.counts))):
            return returned[0]
        outputs: dict[tuple[int, int], Tensor] = {}  # by expert and chunk
        by_peer = sorted(range(len(self.experts)), key=self.plan.send_order.__getitem__)
        for chunk, rows in enumerate(returned):
            pieces = rows.split(self._cells_of(chunk)[0])
            for cell in by_peer:
                key = self.experts[cell], chunk
                outputs[key] = outputs[key] + pieces[cell] if key in outputs else pieces[cell]
        return torch.cat([outputs[key] for key in sorted(outputs)])

    def _cells_of(self, chunk: int) -> list[list[int]]:
        """By stage, the rows of each cell that are in a chunk."""
        return [[self._chunk_size(count, chunk) for count in stage] for stage in self.cells]

    def _chunk_size(self, count: int, chunk: int) -> int:
        return count * (chunk + 1) // self.num_chunks - count * chunk // self.num_chunks


def _interleave(tasks: list[ChunkTask]) -> list[Tensor]:
    """Run all chunks, each a step behind the one before: a later one is sent before an earlier one computes.

    Every rank does the same and autograd does the exact reverse, so that collectives have one order.
    """
    results: dict[int, Tensor] = {}
    tick = 0
    while len(results) < len(tasks):
        for chunk in reversed(range(min(tick + 1, len(tasks)))):
            if chunk not in results:
                try:
                    next(tasks[chunk])
                except StopIteration as end:
                    results[chunk] = end.value
        tick += 1
    return [results[chunk] for chunk in range(len(tasks))]


def reorder(rows: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """Consecutive splits of rows in another order, by gathers alone, hence deterministic in backward too."""
    if list(order) == list(range(len(sizes))):
        return rows
    splits = rows.split(list(sizes))
    return torch.cat([splits[i] for i in order])
