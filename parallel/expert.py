"""Experts spread over ranks: which rank holds which, how tokens reach them, how parameters are marked.

Legend: N rows (one a token and choice), M rows received, E experts, L local experts, R ranks of the group,
C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.collectives import all_to_all, exchange_counts
from parallel.mesh import Mesh


@dataclass(frozen=True, kw_only=True)
class ExpertParallel:
    """The experts of one layer over the ranks of one expert-parallel group."""

    num_experts: int
    local_experts: range
    ep_size: int = 1
    group: dist.ProcessGroup | None = None

    @staticmethod
    def on_one_rank(num_experts: int) -> "ExpertParallel":
        """All experts here: nothing travels."""
        return ExpertParallel(num_experts=num_experts, local_experts=range(num_experts))

    @staticmethod
    def over(mesh: Mesh, num_experts: int) -> "ExpertParallel":
        """The experts divided over the mesh's expert-parallel axis.

        Raises:
            LayoutError: num_experts is not a multiple of ep_size.
        """
        return ExpertParallel(
            num_experts=num_experts,
            local_experts=mesh.dims.local_experts(mesh.rank, num_experts),
            ep_size=mesh.dims.ep_size,
            group=mesh.ep_group if mesh.dims.ep_size > 1 else None,
        )

    def mark(self, parameter: nn.Parameter) -> None:
        """Declare a parameter of shape (L, ...) as expert-parallel.

        `allreduce` and `group_name` are DeepSpeed's names (deepspeed/moe/utils.py); `experts` is ours: the
        global number of each slice along the first dim, which the checkpoint names it by.
        """
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = f"ep_size_{self.ep_size}"  # type: ignore[attr-defined]
        parameter.experts = self.local_experts  # type: ignore[attr-defined]


def experts_of(parameter: Tensor) -> range | None:
    """Global numbers of the experts along dim 0 of a marked parameter; None for a dense one."""
    return getattr(parameter, "experts", None)


def global_name(name: str, expert: int) -> str:
    """Name of one expert's slice: (`mlp.experts.fc1_weight`, 5) -> `mlp.experts.5.fc1_weight`."""
    prefix, _, leaf = name.rpartition(".")
    return f"{prefix}.{expert}.{leaf}"


class _Permute(torch.autograd.Function):
    """Reorder rows by gathers alone, forward and backward: deterministic, and no atomic adds."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class TokenExchange:
    """One layer's journey of rows to their experts and back.

    Args:
        counts: (E,) rows of this rank for each expert; the rows come sorted by expert.
        experts: where the experts are.
    """

    def __init__(self, counts: Tensor, experts: ExpertParallel) -> None:
        self.group = experts.group
        sent = counts.view(experts.ep_size, len(experts.local_experts))  # (R, L)
        received = exchange_counts(sent, self.group)
        both = torch.stack([sent, received]).tolist()  # waits for the device
        self.send = [sum(row) for row in both[0]]
        self.receive = [sum(row) for row in both[1]]
        self.local_counts = [sum(column) for column in zip(*both[1], strict=True)]  # (L,) rows an expert
        self._order = None if self.group is None else _by_expert(received)
        self._inverse = None if self._order is None else torch.argsort(self._order)

    def dispatch(self, rows: Tensor) -> Tensor:
        """(N, ...) sorted by expert -> (M, ...) of this rank's experts, sorted by local expert."""
        arrived = all_to_all(rows, self.send, self.receive, self.group)
        if self._order is None:
            return arrived
        return _Permute.apply(arrived, self._order, self._inverse)

    def combine(self, rows: Tensor) -> Tensor:
        """(M, ...) sorted by local expert -> (N, ...) back at the sender, in the order of dispatch."""
        if self._order is not None:
            rows = _Permute.apply(rows, self._inverse, self._order)
        return all_to_all(rows, self.receive, self.send, self.group)


def _by_expert(received: Tensor) -> Tensor:
    """Order that takes rows sorted by (source rank, local expert) to (local expert, source rank).

    Args:
        received: (R, L) rows from each rank for each local expert.
    """
    experts = torch.arange(received.shape[1], device=received.device).expand_as(received)
    expert_of_row = torch.repeat_interleave(experts.reshape(-1), received.reshape(-1))  # (M,)
    return torch.argsort(expert_of_row, stable=True)
