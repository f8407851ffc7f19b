"""One block for every Swin: a mixer of windows, then whatever stands in the place of the MLP.

Legend: B images, H x W tokens, S windows an image, n tokens a window, C channels.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from swin_moe.backbone.windows import WindowGrid
from swin_moe.moe.layer import MoECall, MoELayer, MoEStats
from swin_moe.moe.mlp import MLP
from swin_moe.random.keyed import Dropout, DropPath, SiteCounter, add_branch, branch_scales


class SwinBlock(nn.Module):
    """A window mixer and a feed-forward with residuals.

    Norms stand before each branch (Liu et al. 2021, equation 3) or at its end (2022, section 3.1).

    Args:
        dim: C.
        mixer: called with windows (B * S, n, C) and a mask; see attention.py.
        ffn: called with (B, L, C) tokens, (B,) keys and a MoECall; returns tokens and MoEStats or None.
        grid: how the map is cut into windows.
        resolution: height and width of the map of the configured image, whose mask is made once.
        norm: `pre` or `post`.
        main_norm: a LayerNorm on the main branch after the block.
        drop_path: rate at which a sample skips a branch.
        dropout: rate after the mixer.
    """

    mask: Tensor | None

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        ffn: MLP | MoELayer,
        *,
        grid: WindowGrid,
        resolution: tuple[int, int],
        norm: str,
        main_norm: bool,
        drop_path: float,
        dropout: float,
        sites: SiteCounter,
    ) -> None:
        super().__init__()
        self.grid, self.resolution, self.post_norm = grid, resolution, norm == "post"
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.main_norm = nn.LayerNorm(dim) if main_norm else None
        self.attention, self.mlp = mixer, ffn
        self.run_mixer = run_mixer  # see compile.py
        self.attention_dropout = Dropout(dropout, sites.next())
        self.drop_path1 = DropPath(drop_path, sites.next())
        self.drop_path2 = DropPath(drop_path, sites.next())
        mask = grid.mask(*resolution)
        mask = None if mask is None else mask.to(torch.get_default_device())
        self.register_buffer("mask", mask, persistent=False)

    def reset_buffers(self) -> None:
        """Compute the mask again, after a construction on the meta device."""
        mask = self.grid.mask(*self.resolution)
        if self.mask is not None and mask is not None:
            self.mask.copy_(mask)

    def forward(
        self, x: Tensor, keys: Tensor, call: MoECall | None = None, scales: Tensor | None = None
    ) -> tuple[Tensor, MoEStats | None]:
        """Run the block on a map.

        Args:
            x: (B, H, W, C).
            keys: (B,) of the images.
            call: what an MoE layer does otherwise than configured.
            scales: (2, B) of `branch_scales`, which a model draws for all its blocks; a block alone draws its
                own.

        Returns:
            (B, H, W, C), and the statistics of an MoE.
        """
        if scales is None:
            scales = branch_scales(self.drop_paths, keys, x.dtype)
        first, second = (None, None) if scales is None else scales
        y = self._mix(x if self.post_norm else self.norm1(x))
        y = self.attention_dropout(y, keys)
        x = add_branch(x, self.norm1(y) if self.post_norm else y, first)

        tokens, stats = self.mlp((x if self.post_norm else self.norm2(x)).flatten(1, 2), keys, call)
        y = tokens.view_as(x)
        x = add_branch(x, self.norm2(y) if self.post_norm else y, second)
        return x if self.main_norm is None else self.main_norm(x), stats

    @property
    def drop_paths(self) -> tuple[DropPath, DropPath]:
        """Those of both branches."""
        return self.drop_path1, self.drop_path2

    def _mix(self, x: Tensor) -> Tensor:
        """Mix the tokens of each window: (B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        windows = self.run_mixer(self.attention, self.grid.cut(x), self._mask(height, width, x.device))
        return self.grid.join(windows, height, width)

    def _mask(self, height: int, width: int, device: torch.device) -> Tensor | None:
        if (height, width) == self.resolution:
            return self.mask
        return _mask_of(self.grid, height, width, device)


def run_mixer(mixer: nn.Module, windows: Tensor, mask: Tensor | None) -> Tensor:
    """Mix the tokens of windows: (B * S, n, C) -> (B * S, n, C)."""
    return mixer(windows, mask)


@lru_cache(maxsize=64)
def _mask_of(grid: WindowGrid, height: int, width: int, device: torch.device) -> Tensor | None:
    """The mask of a size that is not the configured one, made once for all blocks."""
    mask = grid.mask(height, width)
    return None if mask is None else mask.to(device)
