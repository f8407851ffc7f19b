"""A feature pyramid: maps of one width at every stride (Lin et al. 2017, arXiv:1612.03144, figure 3).

Names of parameters are those of the published detectors: `lateral_convs.{i}.conv`, `fpn_convs.{i}.conv`.

Legend: B images, C channels of a stage's map, H x W its tokens, c channels of the pyramid.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn


def fill_xavier(values: Tensor, generator: Generator) -> None:
    """Fill a weight uniformly with variance 2 / (fan in + fan out) (Glorot and Bengio 2010, equation 16).

    Args:
        values: (outputs, inputs, ...) of a linear layer or a convolution, in place.
        generator: of the draws.
    """
    fan_in, fan_out = values[0].numel(), values[:, 0].numel()
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(values, -bound, bound, generator=generator)


class XavierConv2d(nn.Conv2d):
    """A convolution with a bias that keeps the size of its map."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: those of `fill_xavier`, the bias 0."""
        if name == "bias":
            values.zero_()
        else:
            fill_xavier(values, generator)


class PyramidConv(nn.Module):
    """A convolution alone, with the name that it has in published weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = XavierConv2d(in_channels, out_channels, kernel_size)

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
