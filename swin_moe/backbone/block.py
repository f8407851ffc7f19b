"""One block for every Swin: a mixer of windows, then an MLP or a mixture of expert MLPs.

Legend: B images or clips, S windows of each, n tokens a window, C channels; `sides` are the tokens of a map
along each axis, (H, W) of an image and (D, H, W) of a clip.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swin_moe.backbone.window_masks import PatternMask, WindowMasks
from swin_moe.backbone.windows import WindowGrid
from swin_moe.moe.experts import MLP
from swin_moe.moe.layer import MoELayer, MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import Dropout, DropPath, SiteCounter, add_branch, branch_scales


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What a block is, besides its mixer and its MLP.

    - `dim`: C.
    - `masks`: how the map is cut into windows, and their masks; the blocks of a stage share them.
    - `resolution`: sides of the map of the configured image, whose mask is a buffer of the block, or clip.
    - `post_norm`: norms at the end of each branch (SwinV2) instead of before it.
    - `main_norm`: a LayerNorm on the main branch after the block.
    - `drop_path`: rate at which a sample skips a branch.
    - `dropout`: rate after the mixer.
    """

    dim: int
    masks: WindowMasks
    resolution: tuple[int, ...]
    post_norm: bool = False
    main_norm: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0


class SwinBlock(nn.Module):
    """A window mixer and a feed-forward with residuals.

    Norms stand before each branch (Liu et al. 2021, equation 3) or at its end (2022, section 3.1).

    Args:
        options: of the block.
        mixer: called with windows (B * S, n, C) and a mask; see attention.py.
        ffn: called with (B, L, C) tokens, (B,) keys and RoutingOverrides; gives tokens and MoEStats or None.
        sites: numbers for the places that draw random numbers.
    """

    mask: Tensor | None

    def __init__(
        self, options: BlockOptions, mixer: nn.Module, ffn: MLP | MoELayer, *, sites: SiteCounter
    ) -> None:
        super().__init__()
        dim, self.options = options.dim, options
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.main_norm = nn.LayerNorm(dim) if options.main_norm else None
        self.attention, self.mlp = mixer, ffn
        self.run_mixer = run_mixer  # compile_blocks replaces it
        self.attention_dropout = Dropout(options.dropout, sites.next())
        self.drop_path1 = DropPath(options.drop_path, sites.next())
        self.drop_path2 = DropPath(options.drop_path, sites.next())
        mask = self._configured_mask()
        mask = None if mask is None else mask.to(torch.get_default_device())
        self.register_buffer("mask", mask, persistent=False)

    @property
    def grid(self) -> WindowGrid:
        """How the map is cut into windows."""
        return self.options.masks.grid

    def reset_buffers(self) -> None:
        """Compute the mask again, after a construction on the meta device."""
        mask = self._configured_mask()
        if self.mask is not None and mask is not None:
            self.mask.copy_(mask)

    def _configured_mask(self) -> Tensor | None:
        """The mask (S, n, n) of the map of the configured image, if it needs one."""
        return None if self.options.masks.by_pattern else self.grid.mask(*self.options.resolution)

    def forward(
        self, x: Tensor, keys: Tensor, call: RoutingOverrides | None = None, scales: Tensor | None = None
    ) -> tuple[Tensor, MoEStats | None]:
        """Run the block on a map.

        Args:
            x: (B, *sides, C).
            keys: (B,) of the images or clips.
            call: what this pass changes of an MoE layer's configuration.
            scales: (2, B) of `branch_scales`, which a model draws for all its blocks; a block alone draws its
                own.

        Returns:
            (B, *sides, C), and the statistics of an MoE layer.
        """
        post_norm = self.options.post_norm
        if scales is None:
            scales = branch_scales(self.drop_paths, keys, x.dtype)
        first, second = (None, None) if scales is None else scales
        y = self.mix_windows(x if post_norm else self.norm1(x))
        y = self.attention_dropout(y, keys)
        x = add_branch(x, self.norm1(y) if post_norm else y, first)

        tokens, stats = self.mlp((x if post_norm else self.norm2(x)).flatten(1, -2), keys, call)
        y = tokens.view_as(x)
        x = add_branch(x, self.norm2(y) if post_norm else y, second)
        return x if self.main_norm is None else self.main_norm(x), stats

    @property
    def drop_paths(self) -> tuple[DropPath, DropPath]:
        """The drop paths of both branches."""
        return self.drop_path1, self.drop_path2

    def mix_windows(self, x: Tensor) -> Tensor:
        """Mix the tokens of each window: (B, *sides, C) -> (B, *sides, C)."""
        sides, masks = tuple(x.shape[1:-1]), self.options.masks
        has_own = sides == self.options.resolution and not masks.by_pattern
        mask = self.mask if has_own else masks.mask(sides, x.device)
        windows = self.run_mixer(self.attention, self.grid.cut(x), mask)
        return self.grid.join(windows, *sides)


def run_mixer(mixer: nn.Module, windows: Tensor, mask: Tensor | PatternMask | None) -> Tensor:
    """Mix the tokens of windows: (B * S, n, C) -> (B * S, n, C). A function, so that it can be compiled."""
    return mixer(windows, mask)
