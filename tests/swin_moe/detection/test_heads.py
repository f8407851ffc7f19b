"""Box and mask heads: names of parameters, initial weights, and what they compute."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from swin_moe.backbone.initialize import initialize
from swin_moe.detection.box_head import BoxHead
from swin_moe.detection.mask_head import MaskHead
from swin_moe.heads.conv_blocks import NormOptions
from tests.models import randn, randomize


def filled(head: nn.Module) -> dict[str, torch.Tensor]:
    initialize(head, seed=3, std=0.02)
    return dict(head.named_parameters())


def is_normal(x: torch.Tensor, std: float) -> bool:
    """Mean and spread of a normal distribution, within five standard errors."""
    n = x.numel()
    return abs(x.mean().item()) < 5 * std / n**0.5 and abs(x.std().item() / std - 1) < 5 / (2 * n) ** 0.5


def test_initial_weights_of_a_box_head() -> None:
    weights = filled(BoxHead(8, 64, 20))
    assert list(weights) == [
        f"{layer}.{kind}"
        for layer in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")
        for kind in ("weight", "bias")
    ]
    assert weights["fc_cls.weight"].shape == (21, 64)
    assert weights["fc_reg.weight"].shape == (80, 64)
    assert is_normal(weights["fc_cls.weight"], 0.01)
    assert is_normal(weights["fc_reg.weight"], 0.001)
    for layer, inputs in ((0, 8 * 49), (1, 64)):
        bound = math.sqrt(6 / (inputs + 64))
        assert 0.95 * bound < weights[f"shared_fcs.{layer}.weight"].abs().max() <= bound
    assert all(not values.any() for name, values in weights.items() if name.endswith("bias"))


def test_initial_weights_of_convolutions() -> None:
    box = BoxHead(16, 8, 2, convs=4, fcs=1, norm=NormOptions(2))
    weights = filled(box)
    assert [name for name in weights if name.startswith("shared_convs.3")] == [
        f"shared_convs.3.{name}" for name in ("conv.weight", "bn.weight", "bn.bias")
    ]
    assert is_normal(weights["shared_convs.1.conv.weight"], (2 / (16 * 9)) ** 0.5)
    weights = filled(MaskHead(16, 24, 30))
    assert list(weights) == [
        f"{layer}.{kind}"
        for layer in (*(f"convs.{i}.conv" for i in range(4)), "upsample", "conv_logits")
        for kind in ("weight", "bias")
    ]
    for name, fan_out in (("convs.0.conv", 24 * 9), ("upsample", 24 * 4), ("conv_logits", 30)):
        assert is_normal(weights[f"{name}.weight"], (2 / fan_out) ** 0.5), name
    assert not any(values.any() for name, values in weights.items() if name.endswith("bias"))


def test_a_box_head_reads_channels_first() -> None:
    head = randomize(BoxHead(2, 5, 3))
    x = randn(4, 2, 7, 7)
    y = x.reshape(4, 98)
    for layer in head.shared_fcs:
        y = F.relu(y @ layer.weight.T + layer.bias)
    logits, deltas = head(x)
    torch.testing.assert_close(logits, y @ head.fc_cls.weight.T + head.fc_cls.bias)
    by_class = y @ head.fc_reg.weight.T + head.fc_reg.bias
    torch.testing.assert_close(deltas[:, 2], by_class[:, 8:12])


def test_missing_regions_change_no_other_region() -> None:
    """Those of a batch norm's group: what stands in their places does not matter."""
    head = randomize(BoxHead(2, 5, 3, convs=2, fcs=1, norm=NormOptions(2)))
    weight = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    x = randn(6, 2, 7, 7)
    other = torch.where(weight.flatten().bool()[:, None, None, None], x, 100.0)
    kept = weight.flatten().bool()
    for one, two in zip(head(x, weight), head(other, weight), strict=True):
        torch.testing.assert_close(one[kept], two[kept])


def test_a_mask_head_doubles_the_sides() -> None:
    head = randomize(MaskHead(3, 4, 2))
    x = randn(2, 3, 14, 14)
    y = x
    for block in head.convs:
        y = F.conv2d(y, block.conv.weight, block.conv.bias, padding=1).clamp_min(0)
    y = torch.einsum("nchw,cdyx->ndhywx", y, head.upsample.weight).flatten(4).flatten(2, 3)
    y = (y + head.upsample.bias[:, None, None]).clamp_min(0)
    y = torch.einsum("nchw,kc->nkhw", y, head.conv_logits.weight[:, :, 0, 0])
    y = y + head.conv_logits.bias[:, None, None]
    torch.testing.assert_close(head(x), y, rtol=1e-4, atol=1e-5)
