"""LR-Net (Hu et al. 2019, arXiv:1904.11491, table 1): a ResNet whose 3 x 3 convolutions are local relations.

A stem and stages of bottlenecks, which a `Backbone` runs as the patches and the stages of a Swin: maps are
(B, H, W, C) between blocks, and views (B, C, H, W) inside. docs/local_relation.md says what the paper leaves
open and what is chosen here.

Legend: B images of h x w pixels, H x W tokens of a map, C channels.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d
from swin_moe.backbone.relation_layer import SpatialConv2d, aggregation
from swin_moe.backbone.stage import Stage
from swin_moe.config import ModelConfig
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import DropPath, SiteCounter, add_branch, branch_scales
from swin_moe.relation_config import LRNetConfig

STEM_KERNEL = 7  # side of the stem's windows, whatever that of the blocks'


class PointwiseConv(nn.Conv2d):
    """A linear layer over the channels of each token, before a batch norm or of a query."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=bias)

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: normal of variance 2 / inputs (He et al. 2015, equation 10), the bias 0."""
        if name == "bias":
            values.zero_()
        else:
            nn.init.normal_(values, std=(2 / values.shape[1]) ** 0.5, generator=generator)


def batch_norm(channels: int, config: LRNetConfig) -> GroupBatchNorm2d:
    """A batch norm over the groups of images of the configuration."""
    return GroupBatchNorm2d(channels, config.norm_group_images, frozen=config.norm_frozen)


class LRStem(nn.Module):
    """From images to the map of the first stage, at a stride of 4 pixels.

    A linear layer over the colours and a local relation of 7 x 7 pixels at a stride of 2; with convolutions,
    the 7 x 7 convolution of a ResNet. Then the maximum of 3 x 3 tokens at a stride of 2.

    Args:
        config: of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.lr_net is not None
        width, relation = config.lr_net.stem_width, config.relation
        if relation.aggregation == "convolution":
            self.colours, self.bn1 = None, None
            self.relation: nn.Module = SpatialConv2d(config.in_chans, width, STEM_KERNEL, stride=2)
        else:
            self.colours, self.bn1 = PointwiseConv(config.in_chans, width), batch_norm(width, config.lr_net)
            wide = replace(relation, kernel_size=STEM_KERNEL)
            self.relation = aggregation(width, wide, stride=2, bias=False, linear=PointwiseConv)
        self.bn2 = batch_norm(width, config.lr_net)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, h, w) -> (B, ceil(h / 4), ceil(w / 4), C)."""
        x = images.to(self.bn2.weight.dtype)  # type: ignore[union-attr]
        if self.colours is not None and self.bn1 is not None:
            x = F.relu(self.bn1(self.colours(x)))
        return pool_maximum(F.relu(self.bn2(self.relation(x)))).permute(0, 2, 3, 1)


def pool_maximum(x: Tensor) -> Tensor:
    """The maximum of the 3 x 3 tokens around every second one: (B, C, H, W) >= 0 -> (B, C, H / 2, W / 2).

    Not F.max_pool2d, whose backward pass adds by atomics on a GPU.
    """
    x = F.pad(x, (1, 1, 1, 1))  # zeros, which are below no value
    for dim in (2, 3):
        count = (x.shape[dim] - 1) // 2
        first, second, third = (x.narrow(dim, at, 2 * count - 1) for at in range(3))
        x = torch.maximum(torch.maximum(first, second), third)
        x = x[:, :, ::2] if dim == 2 else x[:, :, :, ::2]
    return x


class Bottleneck(nn.Module):
    """Fewer channels, an aggregation of the neighbours, more channels, and a residual (He et al. 2016).

    A stride is that of the aggregation. Where channels or sides change, the residual is a linear layer.

    Args:
        in_channels: C of the map.
        width: channels that are aggregated.
        out_channels: C of the result.
        config: of the model.
        stride: tokens of the map from one of the result to the next.
        drop_path: rate at which a sample skips the branch.
        sites: numbers for the places that draw random numbers.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        config: ModelConfig,
        *,
        stride: int,
        drop_path: float,
        sites: SiteCounter,
    ) -> None:
        super().__init__()
        assert config.lr_net is not None
        norms = config.lr_net
        self.conv1, self.bn1 = PointwiseConv(in_channels, width), batch_norm(width, norms)
        self.relation = aggregation(width, config.relation, stride=stride, bias=False, linear=PointwiseConv)
        self.bn2 = batch_norm(width, norms)
        self.conv3, self.bn3 = PointwiseConv(width, out_channels), batch_norm(out_channels, norms)
        self.drop_path = DropPath(drop_path, sites.next())
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            linear = PointwiseConv(in_channels, out_channels, stride=stride)
            self.shortcut = nn.Sequential(linear, batch_norm(out_channels, norms))

    def forward(
        self, x: Tensor, keys: Tensor, call: RoutingOverrides | None = None, scales: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Run the block; a stage calls it as it calls a block of a Swin.

        Args:
            x: (B, H, W, C).
            keys: (B,) of the images.
            call: of MoE layers, which this block does not have.
            scales: None; the block draws its own.

        Returns:
            (B, H / stride, W / stride, out_channels), sides rounded up, and no statistics.
        """
        x = x.permute(0, 3, 1, 2)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.relation(y)))
        y = self.bn3(self.conv3(y))
        scale = branch_scales([self.drop_path], keys, y.dtype)
        y = add_branch(self.shortcut(x), y, None if scale is None else scale[0])
        return F.relu(y).permute(0, 2, 3, 1), None


def lr_stage(config: ModelConfig, stage: int, drop_path: list[float], sites: SiteCounter) -> Stage:
    """The bottlenecks of a stage; the first one of all but the first stage halves the map.

    Args:
        config: of the model.
        stage: number of the stage.
        drop_path: rate of each block.
        sites: numbers for the places that draw random numbers.
    """
    assert config.lr_net is not None
    before = config.stage_dim(stage - 1) if stage else config.lr_net.stem_width
    own = config.stage_dim(stage)
    blocks = [
        Bottleneck(
            own if i else before,
            config.lr_net.stage_width(stage),
            own,
            config,
            stride=2 if stage and not i else 1,
            drop_path=drop_path[i],
            sites=sites,
        )
        for i in range(config.depths[stage])
    ]
    return Stage(blocks, activation_checkpoint_every=config.activation_checkpoint_every)
