"""Small experts of two products with a tanh between them, whole or sliced, and the same by a plain loop.

Legend: E experts, L local experts, C channels, H hidden, R ranks of the expert group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.exchange import Compute, ExchangeOptions, ExpertExchange
from parallel.experts.placement import ExpertParallel, ExpertSlice
from parallel.ranks.mesh import ParallelDims, build_mesh

C, H = 5, 7  # neither divides by the slices: the slices are uneven


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the experts of a case are."""

    world: int
    ep: int
    experts: int
    slices: int = 1
    ranks_per_node: int | None = None
    degrees: tuple[int, ...] = ()

    def placement(self) -> ExpertParallel:
        """On this rank; every rank calls it."""
        dims = ParallelDims(world_size=self.world, ep_size=self.ep, expert_tensor_parallel_size=self.slices)
        mesh = build_mesh(dims, ranks_per_node=self.ranks_per_node, gather_degrees=self.degrees)
        return ExpertParallel.over(mesh, self.experts)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call."""

    options: ExchangeOptions
    counts: str = "uneven"  # or one of `count`
    keyed: bool = True
    static: bool = False
    dtype: torch.dtype = torch.float64


def count(kind: str, rank: int, expert: int) -> int:
    """Rows that a rank has for an expert."""
    by_kind = {
        "uneven": (rank * 5 + expert * 3) % 4 + rank,
        "idle ranks": 9 if rank == 0 else 0,
        "one expert": 11 if expert == 1 else 0,
        "nothing": 0,
        "even": 3,
    }
    return by_kind[kind]


def whole_weights(experts: int, dtype: torch.dtype) -> list[Tensor]:
    """(E, C, H), (E, H), (E, H, C), (E, C): the same on every rank."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(experts, C, H), (experts, H), (experts, H, C), (experts, C)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


SLICED_DIMS = (2, 1, 1, 1)


def held_weights(whole: Sequence[Tensor], placement: ExpertParallel) -> list[nn.Parameter]:
    """What this rank holds of them, marked."""
    held = []
    for tensor, dim in zip(whole, SLICED_DIMS, strict=True):
        local, size = placement.local_experts, tensor.shape[dim]
        columns = placement.part.range(size)
        piece = tensor[local.start : local.stop].narrow(dim, columns.start, len(columns))
        held.append(nn.Parameter(piece.clone()))
        placement.mark(held[-1], sliced_dim=dim, full_size=size)
    return held


def rows_of(rank: int, number: int, dtype: torch.dtype) -> Tensor:
    """(N, C) of one rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(number, C, generator=generator, dtype=torch.float64).to(dtype)


def keys_of(rank: int, number: int) -> Tensor:
    """(N,) whose bits no float of 32 or 16 bits could carry."""
    return (torch.arange(number) + 1000 * rank) * 3 + 2**53


def mask_of(keys: Tensor) -> Tensor:
    """(N, H): the hidden values that a row keeps, by its key."""
    return (keys[:, None] + torch.arange(H)) % 3 != 0


def compute(
    weights: Sequence[Tensor],
    rows: Tensor,
    counts: list[int] | Tensor,
    keys: Tensor | None,
    part: ExpertSlice,
) -> Tensor:
    """The experts, or the part of them that the weights are: (M, C) -> (M, C)."""
    counts = counts.tolist() if isinstance(counts, Tensor) else counts
    masks = torch.ones(len(rows), H) if keys is None else mask_of(keys)
    hidden, columns = part.range(H), part.range(C)
    out = []
    pieces = zip(rows.split(counts), masks.split(counts), *(w.unbind(0) for w in weights), strict=True)
    for x, mask, w1, b1, w2, b2 in pieces:
        h = torch.tanh(x @ w1 + b1) * mask[:, hidden.start : hidden.stop]
        out.append(h @ w2 + F.pad(b2, (columns.start, C - columns.stop)))
    return torch.cat(out)


def expected(
    layout: Layout, case: Case, senders: list[int], rank: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output and gradient of `rank`'s rows, and the gradients of whole weights: row after row."""
    weights = [w.requires_grad_() for w in whole_weights(layout.experts, torch.float64)]
    found = {}
    for sender in senders:
        counts = [count(case.counts, sender, expert) for expert in range(layout.experts)]
        rows = rows_of(sender, sum(counts), case.dtype).double().requires_grad_()
        wanted = [expert for expert, times in enumerate(counts) for _ in range(times)]
        out = rows * 0
        for number, expert in enumerate(wanted):
            w1, b1, w2, b2 = (w[expert] for w in weights)
            hidden = torch.tanh(rows[number] @ w1 + b1)
            if case.keyed:
                hidden = hidden * mask_of(keys_of(sender, len(wanted))[number : number + 1])[0]
            out = out.index_put((torch.tensor(number),), hidden @ w2 + b2)
        (out * pull(sender, len(wanted))).sum().backward()
        found[sender] = out.detach(), rows.grad
    return *found[rank], [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]


def pull(rank: int, number: int) -> Tensor:
    """(N, C): the gradient of the output."""
    return rows_of(1000 + rank, number, torch.float64)


def run(
    exchange: ExpertExchange,
    compute: Compute,
    weights: Sequence[nn.Parameter],
    rows: Tensor,
    counts: Tensor,
    *,
    keys: Tensor | None = None,
    **asked: Any,
) -> tuple[Tensor, int]:
    """Count the rows and let them be computed; returns them and how many this rank computed."""
    counted = exchange.count(weights, counts, like=rows, keyed=keys is not None, **asked)
    assert counted.rows in (None, len(rows))
    out, received = exchange.run(compute, weights, rows, counted, keys=keys)
    return out, int(received)


def run_case(exchange: ExpertExchange, layout: Layout, case: Case, rank: int) -> tuple[float, int]:
    """The largest deviation of output and all gradients from the loop, and the rows received."""
    placement = exchange.placement
    numbers = [count(case.counts, rank, expert) for expert in range(layout.experts)]
    weights = held_weights(whole_weights(layout.experts, case.dtype), placement)
    rows = rows_of(rank, sum(numbers), case.dtype).requires_grad_()
    out, received = run(
        exchange,
        compute,
        weights,
        rows,
        torch.tensor(numbers),
        keys=keys_of(rank, len(rows)) if case.keyed else None,
        rows_bound=100,
        static_count=numbers[0] if case.static else None,
        options=case.options,
    )
    (out * pull(rank, len(rows)).to(case.dtype)).sum().backward()
    first = rank - rank % layout.ep
    want_out, want_rows, want_weights = expected(layout, case, list(range(first, first + layout.ep)), rank)
    want = [want_out, want_rows, *(w for w in held_weights(want_weights, placement))]
    got = [out, rows.grad, *(w.grad for w in weights)]
    return max(far(a, b) for a, b in zip(got, want, strict=True)), received


def far(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value, or over 1."""
    assert found.shape == wanted.shape
    if not found.numel():
        return 0.0
    return float(
        (found.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max().clamp_min(1.0)
    )
