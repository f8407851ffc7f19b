"""What a detector predicts of a region's features beside its box: a mask for each class.

Names of parameters are those of the published detectors: `convs.{i}.conv`, `upsample`, `conv_logits`.

Legend: N regions, C channels, s side of the features, K classes.
"""

import torch.nn.functional as F
from torch import Generator, Tensor, nn

SIDE = 14  # s
MASK_SIDE = 2 * SIDE  # of a mask
CONVS = 4


def _fill_kaiming(name: str, values: Tensor, fan_out: int, generator: Generator) -> None:
    """Normal of variance 2 / fan_out (He et al. 2015); bias 0."""
    if name == "bias":
        values.zero_()
    else:
        nn.init.normal_(values, std=(2 / fan_out) ** 0.5, generator=generator)


class MaskConv2d(nn.Conv2d):
    """A convolution with a bias that keeps the size of its map."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: normal of variance 2 / (out_channels * kernel_size^2) (He et al. 2015); bias 0."""
        _fill_kaiming(name, values, self.out_channels * self.kernel_size[0] ** 2, generator)


class Upsample(nn.ConvTranspose2d):
    """Each token becomes 2 x 2 of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: normal of variance 2 / fan out, as torch counts it: channels * 4; bias 0."""
        _fill_kaiming(name, values, self.in_channels * 4, generator)


class ConvReLU(nn.Module):
    """A convolution and a ReLU, with the name that the convolution has in published weights."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = MaskConv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return F.relu(self.conv(x))


class MaskHead(nn.Module):
    """Four convolutions, one that doubles the sides, and a classifier (He et al. 2017, figure 4, right).

    Args:
        channels: C.
        width: channels of the convolutions.
        num_classes: K.
    """

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvReLU(c, width) for c in (channels, *[width] * (CONVS - 1)))
        self.upsample = Upsample(width)
        self.conv_logits = MaskConv2d(width, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, s, s) -> logits (N, K, 2 s, 2 s)."""
        x = features
        for conv in self.convs:
            x = conv(x)
        logits: Tensor = self.conv_logits(F.relu(self.upsample(x)))
        return logits
