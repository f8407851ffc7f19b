"""Layers whose weights start at a distribution of the published heads, and whose biases start at 0.

`initialize` of swin_moe/backbone/initialize.py calls their `fill_parameter`.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Generator, Tensor, nn

Fill = Callable[[Tensor, Generator], None]  # of a weight (outputs, inputs, ...), in place


def fill_xavier(values: Tensor, generator: Generator) -> None:
    """Uniform of variance 2 / (fan in + fan out) (Glorot and Bengio 2010, equation 16)."""
    fan_in, fan_out = values[0].numel(), values[:, 0].numel()
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(values, -bound, bound, generator=generator)


def fill_uniform(values: Tensor, generator: Generator) -> None:
    """Uniform of variance 1 / (3 fan in), which torch gives to a linear layer (LeCun et al. 1998)."""
    bound = values[0].numel() ** -0.5
    nn.init.uniform_(values, -bound, bound, generator=generator)


def fill_kaiming(values: Tensor, generator: Generator) -> None:
    """Normal of variance 2 / fan out, as torch counts it (He et al. 2015, equation 14)."""
    nn.init.normal_(values, std=(2 / values[:, 0].numel()) ** 0.5, generator=generator)


def fill_normal(std: float) -> Fill:
    """Normal of a standard deviation."""
    return partial(_fill_normal, std)


def _fill_normal(std: float, values: Tensor, generator: Generator) -> None:
    nn.init.normal_(values, std=std, generator=generator)


class _Filled:
    """A layer with the initial weights of `fill`."""

    fill: Fill

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: those of `fill`, the bias 0."""
        if name == "bias":
            values.zero_()
        else:
            self.fill(values, generator)


class FilledConv2d(_Filled, nn.Conv2d):
    """A convolution with a bias that keeps the size of its map.

    Args:
        in_channels: of the input.
        out_channels: of the result.
        kernel_size: side of the convolution, an odd number.
        fill: of the initial weights.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, fill: Fill) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.fill = fill


class FilledUpsample(_Filled, nn.ConvTranspose2d):
    """Each token becomes 2 x 2 of its own.

    Args:
        channels: of the input and of the result.
        fill: of the initial weights.
    """

    def __init__(self, channels: int, fill: Fill) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)
        self.fill = fill


class FilledLinear(_Filled, nn.Linear):
    """A linear layer.

    Args:
        in_features: of the input.
        out_features: of the result.
        fill: of the initial weights.
    """

    def __init__(self, in_features: int, out_features: int, fill: Fill) -> None:
        super().__init__(in_features, out_features)
        self.fill = fill
