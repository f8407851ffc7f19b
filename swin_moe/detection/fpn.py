"""A feature pyramid: maps of one width at every stride (Lin et al. 2017, arXiv:1612.03144, figure 3).

Names of parameters are those of the published detectors: `lateral_convs.{i}.conv`, `fpn_convs.{i}.conv`.

Legend: B images, C channels of a stage's map, H x W its tokens, c channels of the pyramid.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.heads.filled_layers import FilledConv2d, fill_xavier


class PyramidConv(nn.Module):
    """A convolution alone, with the name that it has in published weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = FilledConv2d(in_channels, out_channels, kernel_size, fill_xavier)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        y: Tensor = self.conv(x)
        return y


class FPN(nn.Module):
    """A top-down path with lateral connections, and one more level of every second token of the last.

    Args:
        channels: C of each map, from fine to coarse.
        width: c.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(PyramidConv(c, width, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(PyramidConv(width, width, 3) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid.

        A coarser level is brought to the exact size of the finer one, whose sides may be odd.

        Args:
            maps: (B, C, H, W) of each stage, from fine to coarse.

        Returns:
            (B, c, H, W) of each map, and at last (B, c, ceil(H / 2), ceil(W / 2)) of the coarsest.
        """
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for fine in reversed(range(len(levels) - 1)):
            upsampled = F.interpolate(levels[fine + 1], size=levels[fine].shape[2:], mode="nearest")
            levels[fine] = levels[fine] + upsampled
        levels = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]
        return [*levels, levels[-1][:, :, ::2, ::2]]
