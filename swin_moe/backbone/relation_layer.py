"""The local relation layer (Hu et al. 2019, arXiv:1904.11491, section 3), and a convolution in its place.

Legend: B images, C channels, H x W tokens, h x w tokens of the result, k side of the window, G aggregations.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from swin_moe.backbone.local_relation import local_relation
from swin_moe.backbone.neighbourhood import Neighbourhood
from swin_moe.relation_config import LocalRelationConfig

Pointwise = Callable[[int, int, bool], nn.Conv2d]  # of the channels of input and result, with a bias or not


def pointwise(in_channels: int, out_channels: int, bias: bool) -> nn.Conv2d:
    """A linear layer over the channels of each token; its weights start as those of a Swin."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=bias)


class GeometryPrior(nn.Module):
    """A number for each offset of a window and each aggregation: a small network on the two coordinates.

    The coordinates of a window are -1 .. 1 along each side. The last layer has no bias, which a softmax does
    not see.

    Args:
        kernel_size: k.
        groups: G.
        hidden: channels between the two layers.
    """

    offsets: Tensor

    def __init__(self, kernel_size: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.fc1, self.fc2 = PriorLinear(2, hidden), PriorLinear(hidden, groups, bias=False)
        offsets = window_offsets(kernel_size).to(torch.get_default_device())
        self.register_buffer("offsets", offsets, persistent=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """G, k, k."""
        return self.fc2.out_features, self.kernel_size, self.kernel_size

    def reset_buffers(self) -> None:
        """Compute the coordinates again, after a construction on the meta device."""
        self.offsets.copy_(window_offsets(self.kernel_size))

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self.reset_buffers()  # bf16 and back would leave rounded coordinates
        return self

    def forward(self) -> Tensor:
        """The prior (G, k, k)."""
        hidden = self.fc1(self.offsets.to(self.fc1.weight.dtype)).relu()
        prior: Tensor = self.fc2(hidden)
        return prior.movedim(-1, 0)


class PriorLinear(nn.Linear):
    """A linear layer that starts at normals of variance 1 / inputs, and no bias."""

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: the priors of a new layer differ, by about 1 at the edge of a window."""
        if name == "bias":
            values.zero_()
        else:
            nn.init.normal_(values, std=values.shape[1] ** -0.5, generator=generator)


def window_offsets(kernel_size: int) -> Tensor:
    """Row and column of each token of a window, relative to its centre: (k, k, 2) in -1 .. 1."""
    along = torch.arange(kernel_size, device="cpu") - kernel_size // 2
    steps = along / max(1, kernel_size // 2)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)


class LocalRelation(nn.Module):
    """Aggregate the window around each token, then transform the channels.

    Queries and keys are scalars of an aggregation (or of `key_channels`), linear in the tokens. Keys have no
    bias: the differences to it are the queries' own, and a softmax does not see it in products.

    Args:
        dim: C.
        config: how tokens are aggregated.
        stride: tokens from one window to the next.
        dilation: tokens from one neighbour to the next.
        bias: whether the last transform (or the convolution, without one) has a bias.
        linear: makes the linear layers over the channels.
    """

    def __init__(
        self,
        dim: int,
        config: LocalRelationConfig,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        linear: Pointwise = pointwise,
    ) -> None:
        super().__init__()
        self.config, self.groups = config, config.groups(dim)
        self.neighbourhood = Neighbourhood(kernel_size=config.kernel_size, stride=stride, dilation=dilation)
        keys = self.groups * config.key_channels
        self.scale = config.key_channels**-0.5  # of products, as of those of attention
        has_query = config.has_keys and config.similarity != "key"
        self.query = linear(dim, keys, True) if has_query else None
        self.key = linear(dim, keys, False) if config.has_keys else None
        has_prior = config.aggregation in ("relation", "prior")
        self.prior = (
            GeometryPrior(config.kernel_size, self.groups, config.prior_hidden) if has_prior else None
        )
        self.proj = linear(dim, dim, bias) if config.output_transform else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        s = self.neighbourhood.stride
        y = local_relation(
            None if self.query is None else self.query(x[:, :, ::s, ::s]),
            None if self.key is None else self.key(x),
            x,
            None if self.prior is None else self.prior(),
            self.neighbourhood,
            groups=self.groups,
            similarity=self.config.similarity,
            scale=self.scale,
        )
        return y if self.proj is None else self.proj(y)


class GroupedConvolution(nn.Module):
    """A convolution in the place of a local relation: of groups of channels, then the same last transform.

    Args:
        dim: C.
        config: how tokens are aggregated; `share` channels are a group.
        stride: tokens from one window to the next.
        bias: whether the last transform has a bias.
        linear: makes the last transform.
    """

    def __init__(
        self,
        dim: int,
        config: LocalRelationConfig,
        *,
        stride: int = 1,
        bias: bool = True,
        linear: Pointwise = pointwise,
    ) -> None:
        super().__init__()
        self.conv = SpatialConv2d(dim, dim, config.kernel_size, stride=stride, groups=config.groups(dim))
        self.proj = linear(dim, dim, bias) if config.output_transform else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        y: Tensor = self.conv(x)
        return y if self.proj is None else self.proj(y)


class SpatialConv2d(nn.Conv2d):
    """A convolution without bias whose windows are centred."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights: normal of variance 2 / (outputs of a group * k^2), for a ReLU (He et al. 2015)."""
        fan_out = values.shape[0] // self.groups * self.kernel_size[0] ** 2
        nn.init.normal_(values, std=(2 / fan_out) ** 0.5, generator=generator)


def aggregation(
    dim: int,
    config: LocalRelationConfig,
    *,
    stride: int = 1,
    bias: bool = True,
    linear: Pointwise = pointwise,
) -> LocalRelation | GroupedConvolution:
    """What aggregates the neighbours of a token, by `config.aggregation`; arguments as of the layers."""
    layer = GroupedConvolution if config.aggregation == "convolution" else LocalRelation
    return layer(dim, config, stride=stride, bias=bias, linear=linear)
