"""Expert MLPs as grouped tensors: rows sorted by expert, one GEMM an expert, no padding.

Legend: N rows, L local experts, C channels, H hidden.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.expert import ExpertParallel
from swin_moe.randomness import Dropout


class _GroupedLinear(torch.autograd.Function):
    """rows_e @ weight[e] + bias[e] for each expert, every product written straight into its place.

    Indexing weight[e] under autograd would allocate a full (L, in, out) gradient for each expert.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.counts, ctx.has_bias = counts, bias is not None
        out = rows.new_empty(len(rows), weight.shape[2])
        for e, (x, y) in enumerate(zip(rows.split(counts), out.split(counts), strict=True)):
            if bias is None:
                torch.mm(x, weight[e], out=y)
            else:
                torch.addmm(bias[e], x, weight[e], out=y)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
        grad_bias = weight.new_empty(weight.shape[0], weight.shape[2]) if ctx.has_bias else None
        pieces = zip(rows.split(ctx.counts), grad.split(ctx.counts), grad_rows.split(ctx.counts), strict=True)
        for e, (x, g, dx) in enumerate(pieces):
            torch.mm(g, weight[e].t(), out=dx)
            torch.mm(x.t(), g, out=grad_weight[e])
            if grad_bias is not None:
                torch.sum(g, 0, out=grad_bias[e])
        return grad_rows, grad_weight, grad_bias, None


def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, counts: Sequence[int]) -> Tensor:
    """A linear layer an expert, differentiable.

    Args:
        rows: (N, in), sorted by expert.
        weight: (L, in, out).
        bias: (L, out), or None.
        counts: rows of each expert; they sum to N.

    Returns:
        (N, out).
    """
    return _GroupedLinear.apply(rows, weight, bias, list(counts))


class GroupedMLP(nn.Module):
    """The MLP of every local expert: linear, GELU, dropout, linear."""

    def __init__(
        self, dim: int, hidden: int, placement: ExpertParallel, *, dropout: float, fc2_bias: bool, site: int
    ) -> None:
        super().__init__()
        local = len(placement.local_experts)
        self.fc1_weight = nn.Parameter(torch.empty(local, dim, hidden))
        self.fc1_bias = nn.Parameter(torch.empty(local, hidden))
        self.fc2_weight = nn.Parameter(torch.empty(local, hidden, dim))
        self.fc2_bias = nn.Parameter(torch.empty(local, dim)) if fc2_bias else None
        self.dropout = Dropout(dropout, site)
        for parameter in self.parameters():
            placement.mark(parameter)

    def forward(self, rows: Tensor, counts: Sequence[int], keys: Tensor) -> Tensor:
        """Run each expert on its rows: (N, C), rows an expert, keys (N,) of the rows -> (N, C)."""
        hidden = F.gelu(grouped_linear(rows, self.fc1_weight, self.fc1_bias, counts))
        return grouped_linear(self.dropout(hidden, keys), self.fc2_weight, self.fc2_bias, counts)
