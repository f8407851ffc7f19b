"""What a detector predicts of a region's features beside its box: a mask for each class.

Names of parameters are those of the published detectors: `convs.{i}.conv`, `upsample`, `conv_logits`.

Legend: N regions, C channels, s side of the features, K classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.heads.filled_layers import FilledConv2d, FilledUpsample, fill_kaiming

SIDE = 14  # s
MASK_SIDE = 2 * SIDE  # of a mask
CONVS = 4


class ConvReLU(nn.Module):
    """A convolution and a ReLU, with the name that the convolution has in published weights."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = FilledConv2d(in_channels, out_channels, 3, fill_kaiming)

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
        self.upsample = FilledUpsample(width, fill_kaiming)
        self.conv_logits = FilledConv2d(width, num_classes, 1, fill_kaiming)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, s, s) -> logits (N, K, 2 s, 2 s)."""
        x = features
        for conv in self.convs:
            x = conv(x)
        logits: Tensor = self.conv_logits(F.relu(self.upsample(x)))
        return logits
