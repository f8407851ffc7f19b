"""LR-Net: its published size, a ResNet by the same code against torchvision's, blocks by loops, layouts.

Legend: B images, C channels, H x W tokens.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck
from torchvision.models.resnet import ResNet

from swin_moe import build_model
from swin_moe.backbone.flops import build_on_meta, cost, count_parameters
from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d, update_running_statistics
from swin_moe.backbone.lr_net import Bottleneck, pool_maximum
from swin_moe.backbone.relation_layer import LocalRelation
from swin_moe.config import ModelConfig
from swin_moe.detection.config import DetectorConfig
from swin_moe.detection.detector import build_detector
from swin_moe.errors import ModelError
from swin_moe.heads.upernet import build_segmenter
from swin_moe.heads.upernet_config import UPerNetConfig
from swin_moe.random.keyed import SiteCounter, sample_keys
from swin_moe.relation_config import LocalRelationConfig, LRNetConfig
from tests.models import randomize_by_fan_in, small_lr_net
from tests.swin_moe.backbone.relation_by_hand import relation_by_hand

RESNET = LocalRelationConfig(aggregation="convolution", kernel_size=3, share=2**17, output_transform=False)


def published(depths: tuple[int, ...], **changes: Any) -> ModelConfig:
    """An LR-Net of these depths for ImageNet."""
    options: dict[str, Any] = {
        "attention": "local_relation",
        "embed_dim": 256,
        "lr_net": LRNetConfig(),
        "drop_path_rate": 0.0,
    }
    return ModelConfig(**(options | changes), depths=depths)


@pytest.mark.parametrize(
    ("depths", "million", "giga"), [((2, 2, 2, 2), 14.7, 2.6), ((3, 4, 6, 3), 23.3, 4.3)], ids=["26", "50"]
)
def test_has_the_published_size(depths: tuple[int, ...], million: float, giga: float) -> None:
    """Parameters within 1 %, and FLOPs within 10 %: the published ones may count similarities too."""
    counted = cost(published(depths))
    assert counted.parameters / 1e6 == pytest.approx(million, rel=0.01)
    assert 0.9 * giga < counted.flops / 1e9 < giga
    without = published(depths, local_relation=LocalRelationConfig(output_transform=False))
    assert (
        count_parameters(build_on_meta(without)) / 1e6 < 0.89 * million
    )  # so that the transform must be there


def test_with_convolutions_has_the_size_of_a_resnet() -> None:
    """ResNet-50 of torchvision: 25,557,032 parameters, 4.09 G multiply-adds."""
    counted = cost(published((3, 4, 6, 3), local_relation=RESNET, lr_net=LRNetConfig(width=64)))
    assert counted.parameters == 25_557_032
    assert counted.flops == 4_089_184_256


def test_flops_of_an_aggregation_are_those_of_its_window() -> None:
    """Of 8 x 8 tokens in stage 0, k^2 C more multiply-adds a token for a window of k x k, and no other."""
    small = small_lr_net(depths=(1, 1))
    counts = [
        cost(replace(small, local_relation=replace(small.relation, kernel_size=k))).flops for k in (1, 3)
    ]
    assert counts[1] - counts[0] == 8 * (64 * 4 + 16 * 8)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_with_convolutions_is_torchvisions_resnet(training: bool) -> None:
    config = published(
        (2, 1, 1, 1), local_relation=RESNET, lr_net=LRNetConfig(width=64, norm_group_images=2), num_classes=5
    )
    model = randomize_by_fan_in(build_model(config)).train(training)
    reference = ResNet(TorchvisionBottleneck, [2, 1, 1, 1], num_classes=5).train(training)
    reference.load_state_dict(_torchvision_names(model), strict=False)
    x = torch.randn(2, 3, 45, 64)
    logits = model(x).logits
    torch.testing.assert_close(logits, reference(x), rtol=1e-4, atol=1e-5)
    if training:
        update_running_statistics(model)
        now, expected = model.state_dict(), reference.state_dict()
        torch.testing.assert_close(now["patch_embed.bn2.running_var"], expected["bn1.running_var"])
        last = "layers.3.blocks.0.bn3.running_mean"
        torch.testing.assert_close(now[last], expected["layer4.0.bn3.running_mean"], rtol=1e-4, atol=1e-5)


def _torchvision_names(model: nn.Module) -> dict[str, Tensor]:
    names = {"patch_embed.relation.": "conv1.", "patch_embed.bn2.": "bn1.", "head.": "fc."}
    renamed = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        if name.startswith("layers."):
            _, stage, _, block, rest = name.split(".", 4)
            rest = rest.replace("relation.conv.", "conv2.").replace("shortcut.", "downsample.")
            name = f"layer{int(stage) + 1}.{block}.{rest}"
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def test_a_bottleneck_by_loops() -> None:
    """With a stride, a projection and the batch's own statistics; the loops are in fp64."""
    config = small_lr_net()
    block = Bottleneck(4, 4, 8, config, stride=2, drop_path=0.0, sites=SiteCounter())
    randomize_by_fan_in(block)
    x, keys = torch.randn(2, 5, 6, 4), torch.arange(2)
    y, statistics = block(x, keys)
    assert statistics is None
    block, x = block.double(), x.double()

    def norm(values: Tensor, of: GroupBatchNorm2d) -> Tensor:
        assert of.weight is not None
        assert of.bias is not None
        mean = values.mean((0, 2, 3), keepdim=True)
        var = (values - mean).square().mean((0, 2, 3), keepdim=True)
        scaled = (values - mean) / (var + of.eps).sqrt()
        return scaled * of.weight.view(-1, 1, 1) + of.bias.view(-1, 1, 1)

    def linear(values: Tensor, of: nn.Conv2d) -> Tensor:
        result = torch.einsum("oc,bchw->bohw", of.weight[:, :, 0, 0], values)
        return result if of.bias is None else result + of.bias.view(-1, 1, 1)

    first = x.permute(0, 3, 1, 2)
    inner = norm(linear(first, block.conv1), block.bn1).clamp_min(0)
    layer = block.relation
    assert isinstance(layer, LocalRelation)
    assert layer.query is not None
    assert layer.key is not None
    assert layer.prior is not None
    assert layer.proj is not None
    query, key = linear(inner, layer.query)[:, :, ::2, ::2], linear(inner, layer.key)
    mixed = relation_by_hand(query, key, inner, layer.prior(), layer.neighbourhood, groups=2)
    inner = norm(linear(mixed, layer.proj), block.bn2).clamp_min(0)
    outer = norm(linear(inner, block.conv3), block.bn3)
    projection, projected = block.shortcut.children()
    assert isinstance(projection, nn.Conv2d)
    assert isinstance(projected, GroupBatchNorm2d)
    residual = norm(linear(first[:, :, ::2, ::2], projection), projected)
    torch.testing.assert_close(y.permute(0, 3, 1, 2), (outer + residual).clamp_min(0).float())


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (1, 3)])
def test_the_maximum_of_the_stem_and_its_gradient(sides: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *sides).relu().requires_grad_()
    y, expected = pool_maximum(x), F.max_pool2d(x, 3, stride=2, padding=1)
    assert torch.equal(y, expected)
    weights = torch.randn_like(y) * (y > 0)  # ties are at 0, where the ReLU before it stops the gradient
    got, wanted = (torch.autograd.grad(out, x, weights)[0] for out in (y, expected))
    torch.testing.assert_close(got, wanted)


@torch.no_grad()
@pytest.mark.parametrize("sides", [(32, 32), (33, 46), (5, 64)])
def test_maps_round_up(sides: tuple[int, int]) -> None:
    model = build_model(small_lr_net()).eval()
    features = model.forward_features(torch.randn(1, 3, *sides))
    assert features.strides == (4, 8)
    for x, stride, channels in zip(features.maps, features.strides, model.channels, strict=True):
        assert x.shape == (1, -(-sides[0] // stride), -(-sides[1] // stride), channels)
        assert x.min() == 0  # maps after a ReLU, which need no norm
    pooled, _ = model.forward_pooled(torch.randn(1, 3, *sides))
    assert pooled.shape == (1, model.channels[-1])


def test_drop_path_follows_the_keys() -> None:
    """A sample whose branch is dropped is its residual; draws depend on the key, not on the batch."""
    config = small_lr_net()
    block = Bottleneck(8, 4, 8, config, stride=1, drop_path=0.5, sites=SiteCounter())
    randomize_by_fan_in(block)
    x, keys = torch.rand(8, 4, 4, 8), sample_keys(0, torch.arange(8))
    y, _ = block(x, keys)
    dropped = torch.tensor([torch.equal(a, b) for a, b in zip(x, y, strict=True)])
    assert 0 < int(dropped.sum()) < 8
    order = torch.tensor([2, 3, 0, 1, 6, 7, 4, 5])  # groups of two images stay together
    torch.testing.assert_close(block(x[order], keys[order])[0], y[order])
    assert torch.equal(block.eval()(x, keys)[0], block(x, sample_keys(1, keys))[0])


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_nothing(every: int) -> None:
    results = []
    for config in (small_lr_net(), small_lr_net(activation_checkpoint_every=every)):
        model = build_model(replace(config, drop_path_rate=0.3), seed=1)
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        model(x, sample_keys(0, torch.arange(4))).logits.square().sum().backward()
        update_running_statistics(model)
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-6, atol=1e-7)


def test_every_parameter_gets_a_gradient() -> None:
    model = build_model(small_lr_net())
    model(torch.randn(4, 3, 32, 32)).logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_initial_weights_keep_the_size_of_maps() -> None:
    """Normal weights of variance 2 / inputs; norms of weight 1."""
    model = build_model(small_lr_net(embed_dim=64, lr_net=LRNetConfig(width=64, norm_group_images=2)))
    block = model.layers[0].blocks[0]  # type: ignore[index]
    assert isinstance(block, Bottleneck)
    assert float(block.conv3.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert float(block.bn1.weight.detach().min()) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "dot"}, r"model.lr_net needs model.attention=local_relation \(got dot\)"),
        ({"patch_size": 2}, r"leave model.patch_size \(2\) at 4"),
        ({"norm": "post"}, r"leave model.norm \(post\) at pre"),
        ({"window_padding": "visible"}, r"no windows: leave model.window_padding \(visible\) at hidden"),
        ({"attention_chunk": 8}, r"leave model.attention_chunk \(8\) at 0"),
    ],
)
def test_refuses_options_of_a_swin(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        published((1, 1), **options)


def test_has_no_masked_images() -> None:
    model = build_model(small_lr_net())
    x, keys = torch.randn(1, 3, 32, 32), torch.zeros(1).long()
    with pytest.raises(ModelError, match="no patches that could be masked"):
        model.forward_masked(x, keys, torch.zeros(1, 8, 8).bool(), torch.zeros(8))


def test_heads_of_segmentation_and_detection_take_its_maps() -> None:
    """Both read channels and strides of the maps, and give gradients to all of the backbone."""
    config = small_lr_net()
    x, keys = torch.randn(2, 3, 32, 32), torch.arange(2)
    options = UPerNetConfig(
        channels=4, pool_bins=(1, 2), auxiliary_channels=4, auxiliary_stage=0, norm_group_images=2
    )
    segmenter = build_segmenter(config, options)
    output = segmenter(x, keys)
    (output.logits.square().sum() + output.auxiliary.square().sum()).backward()
    missing = [n for n, p in segmenter.encoder.named_parameters() if p.grad is None]
    assert output.logits.shape == (2, 5, 8, 8)
    assert missing == []
    detector = build_detector(config, DetectorConfig())
    assert detector.encoder.channels == (8, 16)
    assert detector.encoder.strides == (4, 8)
    features = detector.encoder.forward_features(x, keys)
    assert [m.shape for m in features.maps] == [(2, 8, 8, 8), (2, 4, 4, 16)]
