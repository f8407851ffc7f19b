"""Window attention and its relative position bias.

Legend: B images, S windows an image, n = w * w tokens a window, h heads, C channels, d = C / h.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relative_offsets(window: int) -> Tensor:
    """Row and column offset of every pair of tokens of a window: (n, n, 2) int64 in [-(w - 1), w - 1]."""
    axis = torch.arange(window)
    tokens = torch.cartesian_prod(axis, axis)  # (n, 2)
    return tokens[:, None, :] - tokens[None, :, :]


def relative_index(window: int) -> Tensor:
    """Row of the (2w - 1)^2 table of offsets for every pair of tokens: (n, n) int64."""
    offsets = relative_offsets(window) + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


class TableBias(nn.Module):
    """One learned number a head and offset (Liu et al. 2021, equation 4)."""

    index: Tensor

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self) -> Tensor:
        """The bias (h, n, n)."""
        return self.relative_position_bias_table[self.index].permute(2, 0, 1)


class LogCpbBias(nn.Module):
    """The log-spaced continuous bias (Liu et al. 2022, equations 3 and 4), as Swin-MoE uses it.

    Swin-MoE adds the output of the small network as it is; SwinV2's 16 * sigmoid is not applied.
    """

    coordinates: Tensor
    index: Tensor

    def __init__(self, window: int, num_heads: int, hidden: int = 512) -> None:
        super().__init__()
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(inplace=False), nn.Linear(hidden, num_heads, bias=False)
        )
        axis = torch.arange(1 - window, window, dtype=torch.float32)
        axis = axis / max(window - 1, 1) * 8.0
        axis = torch.sign(axis) * torch.log2(axis.abs() + 1.0) / math.log2(8.0)
        self.register_buffer("coordinates", torch.cartesian_prod(axis, axis), persistent=False)
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self) -> Tensor:
        """The bias (h, n, n)."""
        dtype = next(self.cpb_mlp.parameters()).dtype
        table = self.cpb_mlp(self.coordinates.to(dtype))  # ((2w - 1)^2, h)
        return table[self.index].permute(2, 0, 1)


POSITION_BIAS: dict[str, type[nn.Module]] = {"table": TableBias, "log_cpb": LogCpbBias}


class WindowAttention(nn.Module):
    """Multi-head dot-product attention inside windows, with a relative position bias."""

    def __init__(
        self, dim: int, num_heads: int, window: int, *, position_bias: str = "table", qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.position_bias = POSITION_BIAS[position_bias](window, num_heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend inside each window.

        Args:
            x: (B * S, n, C).
            mask: (S, n, n) additive, or None.

        Returns:
            (B * S, n, C).
        """
        windows, n, c = x.shape
        per_image = 1 if mask is None else len(mask)
        qkv = self.qkv(x).view(windows // per_image, per_image, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, S, h, n, d)
        bias = self.position_bias()
        if mask is not None:
            bias = bias + mask.to(bias.dtype)[:, None]  # (S, h, n, n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(out.transpose(2, 3).reshape(windows, n, c))
