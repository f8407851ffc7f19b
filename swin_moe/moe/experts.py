"""The dense MLP, and expert MLPs as grouped tensors: rows sorted by expert, one GEMM an expert, no padding.

Legend: B images, M rows, L local experts, C channels, H hidden channels, of a slice where experts are sliced.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.placement import ExpertParallel, ExpertSlice
from swin_moe.moe.grouped_gemm import (
    ACTIVATIONS,
    ActivationName,
    ExpertCall,
    grouped,
    has_grouped_products,
    loop,
)
from swin_moe.random.keyed import Dropout, SiteCounter


class MLP(nn.Module):
    """Linear, GELU, linear, with dropout after each: of a dense block, or as an MoE layer's shared expert."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, fc2_bias: bool, sites: SiteCounter) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=fc2_bias)
        self.drop1 = Dropout(dropout, sites.next())
        self.drop2 = Dropout(dropout, sites.next())

    def forward(self, x: Tensor, keys: Tensor, call: object = None) -> tuple[Tensor, None]:
        """(B, tokens, C) with the images' keys (B,) -> (B, tokens, C), and no statistics."""
        x = self.drop1(F.gelu(self.fc1(x)), keys)
        return self.drop2(self.fc2(x), keys), None


class ExpertMLP(nn.Module):
    """The MLP of every local expert: linear, GELU or SwiGLU, dropout, linear.

    A slice of an expert holds some columns of the hidden dim and adds its part of fc2's bias to its own
    columns of the output: the answers of the slices sum to the expert's.

    Saved for backward, in bytes a row, of elements of b bytes: b (C + 2 H), and b (C + H) with `recompute`;
    of SwiGLU b (C + 3 H) and b (C + 2 H). Dropout adds nothing, but 8 (its key) with `recompute`.

    Args:
        dim: C.
        hidden: hidden channels of an expert that is not sliced.
        placement: which experts are here, and which part of each.
        activation: `gelu` or `swiglu`, whose gate is one more linear layer.
        dropout: rate after the activation.
        fc2_bias: whether the last linear layer has a bias.
        recompute: compute the activation again in backward instead of saving it.
        site: of the dropout's draws.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        placement: ExpertParallel,
        *,
        activation: ActivationName,
        dropout: float,
        fc2_bias: bool,
        recompute: bool,
        site: int,
    ) -> None:
        super().__init__()
        self.hidden, self.activation, self.recompute = hidden, activation, recompute
        local, here = len(placement.local_experts), len(placement.part.range(hidden))

        def columns(*shape: int, sliced_dim: int, full_size: int = hidden) -> nn.Parameter:
            parameter = nn.Parameter(torch.empty(local, *shape))
            placement.mark(parameter, sliced_dim=sliced_dim, full_size=full_size)
            return parameter

        self.fc1_weight, self.fc1_bias = columns(dim, here, sliced_dim=2), columns(here, sliced_dim=1)
        self.gate_weight = self.gate_bias = self.fc2_bias = None
        if activation == "swiglu":
            self.gate_weight, self.gate_bias = columns(dim, here, sliced_dim=2), columns(here, sliced_dim=1)
        self.fc2_weight = columns(here, dim, sliced_dim=1)
        if fc2_bias:
            self.fc2_bias = columns(len(placement.part.range(dim)), sliced_dim=1, full_size=dim)
        self.dropout = Dropout(dropout, site)

    def weights(self) -> list[nn.Parameter]:
        """This rank's columns of those that exist: fc1 weight (L, C, H) and bias (L, H), the gate's likewise,
        fc2 weight (L, H, C) and bias (L, C).
        """
        fc1, gate = (self.fc1_weight, self.fc1_bias), (self.gate_weight, self.gate_bias)
        return [x for x in (*fc1, *gate, self.fc2_weight, self.fc2_bias) if x is not None]

    def forward(
        self,
        weights: Sequence[Tensor],
        rows: Tensor,
        counts: list[int] | Tensor,
        keys: Tensor | None,
        part: ExpertSlice,
    ) -> Tensor:
        """Run each expert on its rows.

        Args:
            weights: as `weights()` gives them, perhaps of more or of larger parts of experts than are here.
            rows: (M, C), sorted by expert.
            counts: rows of each expert, (L,) if they are on the device; rows beyond their sum only pad, and
                the last expert computes them.
            keys: (M,) of the rows; None will do where nothing is dropped.
            part: of each expert, what `weights` are.

        Returns:
            (M, C), of which the parts' sum is the experts' answer.
        """
        drops = self.training and self.dropout.rate > 0.0
        assert keys is not None or not drops, "dropout draws by the rows' keys"
        rows, *weights = _autocast([rows, *weights])
        columns, outputs = part.range(self.hidden), part.range(rows.shape[1])
        call = ExpertCall(
            counts=counts,
            activation=ACTIVATIONS[self.activation],
            rate=self.dropout.rate if drops else 0.0,
            hidden=columns,
            outputs=outputs,
            recompute=self.recompute,
            backward=torch.is_grad_enabled() and any(x.requires_grad for x in (rows, *weights)),
        )
        run = grouped if has_grouped_products(rows, len(columns)) else loop
        draws = self.dropout.keys(keys) if drops and keys is not None else None
        return run(call, rows, draws, weights)


def _autocast(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors in the dtype that autocast, where it is on, would give to a linear layer."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast, and torch raises
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]
