"""The local relation layer: what it computes, its parts, its precision, and what backward meets.

Legend: B images, C channels, H x W tokens, k side of the window, G aggregations.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from swin_moe.backbone.initialize import initialize
from swin_moe.backbone.relation_layer import (
    GeometryPrior,
    GroupedConvolution,
    LocalRelation,
    aggregation,
    window_offsets,
)
from swin_moe.errors import ModelError
from swin_moe.relation_config import LocalRelationConfig
from tests.models import randomize
from tests.swin_moe.backbone.relation_by_hand import relation_by_hand

SMALL = LocalRelationConfig(kernel_size=3, share=2, prior_hidden=4)


@pytest.mark.parametrize("stride", [1, 2])
def test_is_a_relation_of_linear_queries_and_keys(stride: int) -> None:
    config = replace(SMALL, similarity="product", key_channels=2)
    layer = randomize(LocalRelation(4, config, stride=stride).double())
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert layer.query is not None
    assert layer.key is not None
    assert layer.prior is not None
    assert layer.proj is not None
    query = torch.einsum("oc,bchw->bohw", layer.query.weight[:, :, 0, 0], x)
    assert layer.query.bias is not None
    query = (query + layer.query.bias.view(-1, 1, 1))[:, :, ::stride, ::stride]
    key = torch.einsum("oc,bchw->bohw", layer.key.weight[:, :, 0, 0], x)
    expected = relation_by_hand(
        query,
        key,
        x,
        layer.prior().detach(),
        layer.neighbourhood,
        groups=2,
        similarity="product",
        scale=0.5**0.5,
    )
    torch.testing.assert_close(layer(x), layer.proj(expected))


def test_the_prior_is_a_network_on_offsets() -> None:
    """Hidden channels relu(w . offset + b), then one number an aggregation: (row, column) in -1 .. 1."""
    prior = GeometryPrior(5, groups=2, hidden=3)
    randomize(prior)
    w1, b1, w2 = prior.fc1.weight, prior.fc1.bias, prior.fc2.weight
    for row in range(5):
        for column in range(5):
            offset = torch.tensor([(row - 2) / 2, (column - 2) / 2])
            expected = w2 @ (w1 @ offset + b1).relu()
            torch.testing.assert_close(prior()[:, row, column], expected)


def test_coordinates_survive_half_precision_and_the_meta_device() -> None:
    with torch.device("meta"):
        prior = GeometryPrior(7, groups=2, hidden=3)
    prior = prior.to_empty(device="cpu").bfloat16().float()
    initialize(prior, seed=0, std=0.02)
    assert torch.equal(prior.offsets, window_offsets(7))
    assert window_offsets(1).tolist() == [[[0, 0]]]


@pytest.mark.parametrize("kind", ["relation", "content", "prior", "convolution"])
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    layer = randomize(aggregation(4, replace(SMALL, aggregation=kind)))  # type: ignore[arg-type]
    layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
    names = {name.split(".")[0] for name, _ in layer.named_parameters()}
    expected = {
        "relation": {"query", "key", "prior", "proj"},
        "content": {"query", "key", "proj"},
        "prior": {"prior", "proj"},
        "convolution": {"conv", "proj"},
    }
    assert names == expected[kind]
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in layer.parameters())


def test_weights_of_the_prior_alone_do_not_depend_on_the_image() -> None:
    """They are a depthwise convolution, whose weights at an edge sum to 1 over the tokens that are there."""
    layer = randomize(LocalRelation(4, replace(SMALL, aggregation="prior", output_transform=False)))
    x = torch.randn(2, 4, 6, 6)
    assert layer.prior is not None
    kernel = layer.prior().flatten(1).softmax(-1).view(2, 1, 3, 3).repeat_interleave(2, 0)
    y = F.conv2d(x, kernel, groups=4)
    torch.testing.assert_close(layer(x)[:, :, 1:-1, 1:-1], y)
    inside = F.conv2d(torch.ones_like(x), kernel, padding=1, groups=4)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, padding=1, groups=4) / inside)


def test_a_convolution_in_its_place() -> None:
    layer = GroupedConvolution(4, replace(SMALL, aggregation="convolution"), stride=2)
    randomize(layer)
    x = torch.randn(2, 4, 5, 6)
    assert layer.proj is not None
    y = F.conv2d(x, layer.conv.weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(layer(x), F.conv2d(y, layer.proj.weight, layer.proj.bias))


@pytest.mark.parametrize(
    ("share", "width", "groups"), [(8, 96, 12), (8, 100, 10), (8, 7, 1), (5, 12, 2), (64, 8, 1)]
)
def test_channels_that_share_an_aggregation(share: int, width: int, groups: int) -> None:
    """The smallest number from `share` on that divides the width: 10 of 100, 7 of 7, 6 of 12."""
    assert replace(SMALL, share=share).groups(width) == groups


def test_recomputes_under_activation_checkpointing() -> None:
    results = []
    for recompute in (False, True):
        layer = randomize(LocalRelation(4, SMALL))
        x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        assert isinstance(y, torch.Tensor)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_half_precision_stays_near() -> None:
    layer = randomize(LocalRelation(8, SMALL), std=0.3)
    x = torch.randn(2, 8, 6, 6)
    y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer.float()(x.bfloat16().float()), rtol=0.05, atol=0.05)


def test_refuses_an_even_window() -> None:
    with pytest.raises(ModelError, match=r"model.local_relation.kernel_size \(4\) must be odd"):
        LocalRelationConfig(kernel_size=4)
    with pytest.raises(ModelError, match=r"model.local_relation.share \(0\)"):
        LocalRelationConfig(share=0)
