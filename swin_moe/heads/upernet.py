"""Semantic segmentation: UPerNet (Xiao et al. 2018, arXiv:1807.10221) on the maps of any backbone.

The heads and the names of their parameters are those of the published models
(github.com/SwinTransformer/Swin-Transformer-Semantic-Segmentation). All ranks call the same modules in the
same order, whatever their images are.

Legend: B images of h x w pixels, p patch side, s stride of a map, C its channels, H x W its tokens, K
classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.backbone import Backbone, total_loss
from swin_moe.backbone.model import construct
from swin_moe.config import ModelConfig
from swin_moe.heads.conv_blocks import ChannelDropout, ConvNormReLU, NormOptions, PixelClassifier
from swin_moe.heads.resize import adaptive_average_pool, resize
from swin_moe.heads.stage_norms import StageNorms
from swin_moe.heads.upernet_config import UPerNetConfig, check_model
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides

DECODE_SITE, AUXILIARY_SITE = -2, -3  # of dropout; the sites of a backbone count from 0


class SegmentationOutput(NamedTuple):
    """Logits at the resolution of the first map, those of the auxiliary head, and statistics of MoE layers.

    The sides of `logits` are h / p and w / p, those of `auxiliary` h / s and w / s of its stage, rounded up.
    """

    logits: Tensor  # (B, K, h / p, w / p)
    auxiliary: Tensor | None  # (B, K, h / s, w / s) in training, otherwise None
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all MoE layers, summed: scalar; not that of the auxiliary head."""
        return total_loss(self.moe, self.logits.device)


class AdaptiveAveragePool(nn.Module):
    """`adaptive_average_pool` as a module: the first of each pair of the pyramid pooling."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, bins, bins)."""
        return adaptive_average_pool(x, self.bins)

    def extra_repr(self) -> str:
        """As torch's pools print theirs."""
        return f"{self.bins}"


class PyramidPooling(nn.ModuleList):
    """A map beside its means over several grids (Zhao et al. 2017, arXiv:1612.01105, section 3.2).

    Args:
        in_channels: C of the map.
        channels: of each mean.
        bins: side of each grid.
        norm: of the batch norms.
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int], norm: NormOptions) -> None:
        pairs = [(AdaptiveAveragePool(side), ConvNormReLU(in_channels, channels, 1, norm)) for side in bins]
        super().__init__(nn.Sequential(*pair) for pair in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + channels * number of grids, H, W)."""
        height, width = x.shape[2:]
        return torch.cat([x, *(resize(pool(x), (height, width)) for pool in self)], dim=1)


class UPerHead(nn.Module):
    """Pyramid pooling of the last map, a top-down path, and a classifier on all levels together.

    Args:
        channels: C of each map.
        num_classes: K.
        config: of the head.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, config: UPerNetConfig) -> None:
        super().__init__()
        width, norm = config.channels, NormOptions(config.norm_group_images, config.norm_frozen)
        pooled = channels[-1] + len(config.pool_bins) * width
        self.psp_modules = PyramidPooling(channels[-1], width, config.pool_bins, norm)
        self.bottleneck = ConvNormReLU(pooled, width, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(c, width, 1, norm) for c in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvNormReLU(width, width, 3, norm) for _ in channels[:-1])
        self.fpn_bottleneck = ConvNormReLU(len(channels) * width, width, 3, norm)
        self.dropout = ChannelDropout(config.dropout, DECODE_SITE)
        self.conv_seg = PixelClassifier(width, num_classes)

    def forward(self, maps: Sequence[Tensor], keys: Tensor) -> Tensor:
        """The class logits of each token of the first map.

        Args:
            maps: (B, C, H, W) of each level, from fine to coarse.
            keys: (B,) of the images.

        Returns:
            (B, K, H, W).
        """
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.bottleneck(self.psp_modules(maps[-1])))
        for level in reversed(range(len(levels) - 1)):
            levels[level] = levels[level] + resize(levels[level + 1], _sides(levels[level]))
        levels = [*(conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)), levels[-1]]
        together = torch.cat([resize(x, _sides(levels[0])) for x in levels], dim=1)
        logits: Tensor = self.conv_seg(self.dropout(self.fpn_bottleneck(together), keys))
        return logits


class FCNHead(nn.Module):
    """One convolution and a classifier (Long et al. 2015): the auxiliary head.

    Args:
        in_channels: C of the map.
        channels: of the convolution's result.
        num_classes: K.
        config: of the batch norm and the dropout.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, config: UPerNetConfig) -> None:
        super().__init__()
        norm = NormOptions(config.norm_group_images, config.norm_frozen)
        self.convs = nn.Sequential(ConvNormReLU(in_channels, channels, 3, norm))
        self.dropout = ChannelDropout(config.dropout, AUXILIARY_SITE)
        self.conv_seg = PixelClassifier(channels, num_classes)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """The class logits of each token: (B, C, H, W) with keys (B,) -> (B, K, H, W)."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(x), keys))
        return logits


class Segmenter(nn.Module):
    """Any backbone with norms of its maps, UPerNet's head on all of them, and an auxiliary head on one.

    Args:
        model: the encoder; `num_classes` is K.
        config: of the heads.
        placement: where the experts are; needed when the model has any.

    Raises:
        ModelError: of `check_model`.
    """

    def __init__(
        self, model: ModelConfig, config: UPerNetConfig, placement: ExpertParallel | None = None
    ) -> None:
        super().__init__()
        check_model(model, config)
        self.config = config
        self.encoder = Backbone(model, placement, norm=False)
        channels = self.encoder.channels
        self.stage_norms = StageNorms(channels, range(len(channels)))
        self.decode_head = UPerHead(channels, model.num_classes, config)
        self.auxiliary_head = None
        if config.auxiliary_channels:
            self.auxiliary_head = FCNHead(
                channels[config.auxiliary_stage], config.auxiliary_channels, model.num_classes, config
            )

    def forward(
        self, images: Tensor, keys: Tensor | None = None, call: RoutingOverrides | None = None
    ) -> SegmentationOutput:
        """The class logits of images (B, in_chans, h, w) of any size; arguments as in `forward_features`.

        `resize` brings the logits to the size of the labels.
        """
        keys = self.encoder.drawn_keys(images) if keys is None else keys
        features = self.stage_norms(self.encoder.forward_features(images, keys, call))
        maps = [x.permute(0, 3, 1, 2) for x in features.maps]
        logits, auxiliary = self.decode_head(maps, keys), None
        if self.training and self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head(maps[self.config.auxiliary_stage], keys)
        return SegmentationOutput(logits=logits, auxiliary=auxiliary, moe=features.moe)


def build_segmenter(
    model: ModelConfig,
    config: UPerNetConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> Segmenter:
    """A model with initial weights that depend on (model, config, seed) alone; see `build_model`.

    Batch norms over groups that span ranks need `span_ranks` before training.
    """

    def make(model: ModelConfig, placement: ExpertParallel | None) -> Segmenter:
        return Segmenter(model, config, placement)

    return construct(
        make, model, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )


def _sides(x: Tensor) -> tuple[int, int]:
    """H and W of a map (B, C, H, W)."""
    height, width = x.shape[2:]
    return height, width
