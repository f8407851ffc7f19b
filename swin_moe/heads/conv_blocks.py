"""What convolutional heads are made of: convolutions with batch norm, and classifiers of pixels.

Names of parameters are those of the published segmentation models: `conv`, `bn`, `conv_seg`.

Legend: B images, C channels, H x W tokens, K classes.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d
from swin_moe.heads.filled_layers import FilledConv2d, fill_normal
from swin_moe.random.keyed import Dropout, keep_mask


class NormOptions(NamedTuple):
    """The batch norms of a head, see `GroupBatchNorm2d`."""

    group_images: int
    frozen: bool = False


class KaimingConv2d(nn.Conv2d):
    """A convolution without bias before a ReLU: the map keeps its size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: normal of variance 2 / (out_channels * kernel_size^2) (He et al. 2015)."""
        nn.init.kaiming_normal_(values, mode="fan_out", nonlinearity="relu", generator=generator)


class ConvNormReLU(nn.Module):
    """A convolution, a batch norm and a ReLU.

    Args:
        in_channels: C of the input.
        out_channels: C of the result.
        kernel_size: side of the convolution, an odd number.
        norm: of the batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: NormOptions) -> None:
        super().__init__()
        self.conv = KaimingConv2d(in_channels, out_channels, kernel_size)
        self.bn = GroupBatchNorm2d(out_channels, norm.group_images, frozen=norm.frozen)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W); `weight` is that of rows, see the batch norm."""
        y: Tensor = F.relu(self.bn(self.conv(x), weight))
        return y


class PixelClassifier(FilledConv2d):
    """A linear layer from the channels of each token to its class logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes, 1, fill_normal(0.01))


class ChannelDropout(Dropout):
    """Dropout of channels of a map (Tompson et al. 2015), whose mask is a function of the images' keys."""

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Drop channels of x: (B, C, H, W) with keys (B,) -> (B, C, H, W)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = keep_mask(self.keys(keys), x.shape[1], self.rate)
        return (x * (1.0 / (1.0 - self.rate))).masked_fill(~keep[:, :, None, None], 0.0)
