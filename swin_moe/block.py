"""One block for every Swin: window attention, then whatever stands in the place of the MLP.

Legend: B images, H x W tokens, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.attention import WindowAttention
from swin_moe.moe import MoELayer, MoEStats
from swin_moe.randomness import Dropout, DropPath, SiteCounter
from swin_moe.windows import partition, reverse, shift_mask


class MLP(nn.Module):
    """Linear, GELU, linear, with dropout after each."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, fc2_bias: bool, sites: SiteCounter) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=fc2_bias)
        self.drop1 = Dropout(dropout, sites.next())
        self.drop2 = Dropout(dropout, sites.next())

    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, None]:
        """(B, L, C) with the images' keys (B,) -> (B, L, C), and no statistics."""
        x = self.drop1(F.gelu(self.fc1(x)), keys)
        return self.drop2(self.fc2(x), keys), None


class SwinBlock(nn.Module):
    """Pre-norm attention and feed-forward with residuals (Liu et al. 2021, equation 3).

    Args:
        attention: over windows of `window` tokens a side.
        ffn: called with (B, L, C) tokens and (B,) keys, returns tokens and MoEStats or None.
        resolution: side of the map in tokens.
        shift: cyclic shift in tokens; 0 for plain windows.
        drop_path: rate at which a sample skips a branch.
        dropout: rate after the attention's projection.
    """

    def __init__(
        self,
        dim: int,
        attention: WindowAttention,
        ffn: MLP | MoELayer,
        *,
        resolution: int,
        window: int,
        shift: int,
        drop_path: float,
        dropout: float,
        sites: SiteCounter,
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = attention, ffn
        self.attention_dropout = Dropout(dropout, sites.next())
        self.drop_path1 = DropPath(drop_path, sites.next())
        self.drop_path2 = DropPath(drop_path, sites.next())
        mask = shift_mask(resolution, resolution, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, MoEStats | None]:
        """(B, H, W, C) with the images' keys (B,) -> (B, H, W, C), and the statistics of an MoE."""
        x = x + self.drop_path1(self.attention_dropout(self._attend(self.norm1(x)), keys), keys)
        y, stats = self.mlp(self.norm2(x).flatten(1, 2), keys)
        return x + self.drop_path2(y.view_as(x), keys), stats

    def _attend(self, x: Tensor) -> Tensor:
        """Attention inside (shifted) windows: (B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attention(partition(x, self.window), self.mask)
        x = reverse(windows, self.window, height, width)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x
