"""The feature pyramid: its size, its paths by hand, its initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.backbone.flops import count_parameters
from swin_moe.backbone.initialize import initialize
from swin_moe.detection.fpn import FPN


@pytest.mark.parametrize(
    ("channels", "parameters"),
    [
        ((96, 192, 384, 768), 2_729_984),
        ((128, 256, 512, 1024), 2_852_864),
        ((192, 384, 768, 1536), 3_098_624),
    ],
)
def test_parameters(channels: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(FPN(channels, 256)) == parameters


def test_names() -> None:
    names = {name for name, _ in FPN((2, 4), 3).named_parameters()}
    modules = [f"{kind}.{level}.conv" for kind in ("lateral_convs", "fpn_convs") for level in range(2)]
    assert names == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Each token of a map of height x width from the one of x in which its corner lies."""
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [j * x.shape[3] // width for j in range(width)]
    return x[:, :, rows][..., columns]


def test_paths_by_hand() -> None:
    """Odd sides: 7 x 9, 4 x 5 and 2 x 3 tokens; the last level is every second token of the coarsest."""
    pyramid = FPN((2, 3, 4), 5)
    initialize(pyramid, seed=1, std=0.02)
    maps = [torch.randn(2, c, *side) for c, side in zip((2, 3, 4), [(7, 9), (4, 5), (2, 3)], strict=True)]
    lateral = [
        torch.einsum("oc,bchw->bohw", conv.conv.weight[:, :, 0, 0], x) + conv.conv.bias[:, None, None]
        for conv, x in zip(pyramid.lateral_convs, maps, strict=True)
    ]
    middle = lateral[1] + nearest(lateral[2], 4, 5)
    sums = [lateral[0] + nearest(middle, 7, 9), middle, lateral[2]]
    expected = [
        F.conv2d(x, conv.conv.weight, conv.conv.bias, padding=1)
        for conv, x in zip(pyramid.fpn_convs, sums, strict=True)
    ]
    levels = pyramid(maps)
    assert [x.shape[2:] for x in levels] == [(7, 9), (4, 5), (2, 3), (1, 2)]
    for level, x in zip(levels, expected, strict=False):
        torch.testing.assert_close(level, x, rtol=1e-4, atol=1e-5)
    assert torch.equal(levels[3], F.max_pool2d(levels[2], kernel_size=1, stride=2))


def test_initial_weights() -> None:
    """Uniform in +-sqrt(6 / (fan in + fan out)), with a bias of 0; a function of seed and name alone."""
    pyramid = FPN((32, 64), 48)
    initialize(pyramid, seed=1, std=0.02)
    for conv, fans in ((pyramid.lateral_convs[1], 64 + 48), (pyramid.fpn_convs[0], 9 * (48 + 48))):
        weight, bound = conv.conv.weight, math.sqrt(6 / fans)
        assert torch.equal(conv.conv.bias, torch.zeros(48))
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    again = FPN((32, 64), 48)
    initialize(again, seed=1, std=0.02)
    assert all(torch.equal(x, y) for x, y in zip(pyramid.parameters(), again.parameters(), strict=True))
