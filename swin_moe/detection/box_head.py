"""What a detector predicts of a region's features: the logits of its class, and offsets to a box of each.

Names of parameters are those of the published detectors: `shared_convs.{i}.conv|bn`, `shared_fcs.{i}`,
`fc_cls`, `fc_reg`.

Legend: B images, R regions of an image, N = B * R, C channels, s side of the features, K classes.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.heads.conv_blocks import ConvNormReLU, NormOptions
from swin_moe.heads.filled_layers import FilledLinear, fill_normal, fill_xavier

SIDE = 7  # s


class BoxPredictions(NamedTuple):
    """Of each region the class logits, the background's the last, and offsets to a box of each class."""

    logits: Tensor  # (N, K + 1)
    deltas: Tensor  # (N, K, 4)


class BoxHead(nn.Module):
    """Convolutions with batch norm, if any, fully connected layers, a classifier and a regressor.

    Two layers without convolutions are the head of Faster R-CNN with a pyramid (Lin et al. 2017), four
    convolutions and a layer that of Wu & He 2018 (arXiv:1803.08494, section 5.2).

    Args:
        channels: C.
        width: of the fully connected layers.
        num_classes: K.
        convs: how many convolutions.
        fcs: how many fully connected layers.
        norm: of the convolutions.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        num_classes: int,
        *,
        convs: int = 0,
        fcs: int = 2,
        norm: NormOptions | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        if convs:
            norm = NormOptions(1) if norm is None else norm
            self.shared_convs = nn.ModuleList(ConvNormReLU(channels, channels, 3, norm) for _ in range(convs))
        inputs = [channels * SIDE**2, *[width] * (fcs - 1)]
        self.shared_fcs = nn.ModuleList(FilledLinear(size, width, fill_xavier) for size in inputs)
        self.fc_cls = FilledLinear(width, num_classes + 1, fill_normal(0.01))
        self.fc_reg = FilledLinear(width, num_classes * 4, fill_normal(0.001))

    def forward(self, features: Tensor, weight: Tensor | None = None) -> BoxPredictions:
        """The predictions of regions.

        Args:
            features: (N, C, s, s).
            weight: (B, R) 1, or 0 for places without a region, which batch norms count out; they need it in
                training.

        Returns:
            Logits (N, K + 1) and offsets (N, K, 4).
        """
        x = features
        for conv in getattr(self, "shared_convs", ()):
            x = conv(x, weight)
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return BoxPredictions(self.fc_cls(x), self.fc_reg(x).view(-1, self.num_classes, 4))
