"""UPerNet around any backbone: its size and work, gradients, initial weights, draws, groups of images."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ModelConfig, ModelError
from swin_moe.backbone.flops import construct_on_meta, count_parameters
from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d, update_running_statistics
from swin_moe.heads.conv_blocks import ChannelDropout, ConvNormReLU, PixelClassifier
from swin_moe.heads.segmentation import segmentation_loss
from swin_moe.heads.upernet import Segmenter, UPerNetConfig, build_segmenter
from swin_moe.heads.upernet_config import check_model
from swin_moe.heads.upernet_cost import count_segmenter_flops
from swin_moe.random.keyed import sample_keys
from tests.models import V2, add_noise, images_of, small_moe, small_swin

SMALL = small_swin(depths=(1, 2, 1), num_heads=(1, 2, 4), drop_path_rate=0.2)
EXPERTS = small_moe(blocks=((), (1,), (0,)), routing_group_images=2)
KINDS = {"swin": SMALL, "v2": replace(SMALL, **V2), "moe": replace(SMALL, moe=EXPERTS)}
HEADS = UPerNetConfig(channels=12, auxiliary_channels=6, norm_group_images=2)
KEYS = sample_keys(5, torch.arange(2000))

TINY = ModelConfig(image_size=512, num_classes=150)
LAYERS = replace(TINY, depths=(2, 2, 18, 2))
BASE = replace(LAYERS, embed_dim=128, num_heads=(4, 8, 16, 32))
LARGE = replace(LAYERS, embed_dim=192, num_heads=(6, 12, 24, 48))


def on_meta(config: ModelConfig) -> Segmenter:
    return construct_on_meta(lambda model, experts: Segmenter(model, UPerNetConfig(), experts), config)


def make(kind: str, heads: UPerNetConfig = HEADS) -> Segmenter:
    return add_noise(build_segmenter(KINDS[kind], heads), 0.1)


@pytest.mark.parametrize(
    ("config", "encoder", "decode_head", "auxiliary_head", "total"),
    [
        (TINY, 27_520_698, 31_497_366, 923_798, 59_941_862),
        (LAYERS, 48_838_602, 31_497_366, 923_798, 81_259_766),
        (BASE, 86_745_016, 33_315_990, 1_218_710, 121_279_716),
        (replace(BASE, window_size=12), 86_880_376, 33_315_990, 1_218_710, 121_415_076),
        (LARGE, 194_998_164, 36_953_238, 1_808_534, 233_759_936),
    ],
    ids=["tiny", "small", "base", "base-12", "large"],
)
def test_parameters(
    config: ModelConfig, encoder: int, decode_head: int, auxiliary_head: int, total: int
) -> None:
    """To the unit; the published 60M, 81M, 121M and 234M round them."""
    model = on_meta(config)
    assert count_parameters(model.encoder) + count_parameters(model.stage_norms) == encoder
    assert count_parameters(model.decode_head) == decode_head
    assert count_parameters(model.auxiliary_head) == auxiliary_head
    assert count_parameters(model) == total


def test_multiply_adds_of_swin_t() -> None:
    """At 512 x 2048, published as 945 G with elementwise work; the decode head by hand.

    Its maps have 128 x 512 tokens and a fourth of the last one each, and 96 to 768 channels.
    """
    tokens, channels = [128 * 512 // 4**stage for stage in range(4)], (96, 192, 384, 768)
    pooled = sum(side**2 * 768 * 512 for side in (1, 2, 3, 6))
    bottleneck = tokens[3] * 9 * (768 + 4 * 512) * 512
    laterals = sum(t * c * 512 for t, c in zip(tokens[:3], channels[:3], strict=True))
    outputs = sum(t * 9 * 512 * 512 for t in tokens[:3])
    last = tokens[0] * 512 * (9 * 4 * 512 + 150)
    head = pooled + bottleneck + laterals + outputs + last
    assert round(head / 1e9, 1) == 845.4
    multiply_adds = count_segmenter_flops(on_meta(TINY), (512, 2048))
    assert round(multiply_adds / 1e9, 2) == 944.39


@pytest.mark.parametrize(
    ("config", "sides", "giga"),
    [
        (LAYERS, (512, 2048), 1037.42),
        (BASE, (512, 2048), 1187.35),
        pytest.param(TINY, (512, 512), 236.9, marks=pytest.mark.slow),
        pytest.param(replace(BASE, image_size=640), (640, 2560), 1839.18, marks=pytest.mark.slow),
    ],
    ids=["small", "base", "tiny-square", "base-640"],
)
def test_multiply_adds(config: ModelConfig, sides: tuple[int, int], giga: float) -> None:
    """Published as 1038 and 1188 G, and 1841 G at 640 x 2560, with elementwise work."""
    decimals = len(str(giga).partition(".")[2])
    assert round(count_segmenter_flops(on_meta(config), sides) / 1e9, decimals) == giga


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_gradients_of_every_parameter(kind: str) -> None:
    """Sides are rounded up; the auxiliary head is for training alone."""
    model, images = make(kind), images_of(SMALL, 4)[..., :29, :]
    output = model.train()(images, KEYS[:4])
    assert output.logits.shape == (4, 5, 8, 8)
    assert output.auxiliary.shape == (4, 5, 2, 2)
    labels = torch.arange(4 * 29 * 32).view(4, 29, 32).remainder(5)
    loss = segmentation_loss(output.logits, labels) + 0.4 * segmentation_loss(output.auxiliary, labels)
    (loss + output.aux_loss).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []
    assert list(output.moe) == (["layers.1.blocks.1", "layers.2.blocks.0"] if kind == "moe" else [])
    assert (output.aux_loss > 0) == (kind == "moe")
    evaluated = model.eval()(images)
    assert evaluated.auxiliary is None
    assert evaluated.logits.shape == (4, 5, 8, 8)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_any_number_of_stages(stages: int) -> None:
    config = small_swin(depths=(1,) * stages, num_heads=(1,) * stages)
    heads = replace(HEADS, auxiliary_stage=stages - 1)
    output = build_segmenter(config, heads).train()(images_of(config), KEYS[:2])
    assert output.logits.shape == (2, 5, 8, 8)
    assert output.auxiliary.shape == (2, 5, 2 ** (4 - stages), 2 ** (4 - stages))


def test_without_an_auxiliary_head() -> None:
    model = build_segmenter(SMALL, replace(HEADS, auxiliary_channels=0)).train()
    assert model(images_of(SMALL), KEYS[:2]).auxiliary is None
    assert not [name for name in model.state_dict() if name.startswith("auxiliary")]


def test_names_of_parameters_are_the_published_ones() -> None:
    """Facts of the released files: index 0 of a pair of the pyramid pooling has no tensors."""
    names = {name for name in on_meta(TINY).state_dict() if name.split(".")[0].endswith("_head")}
    blocks = [f"psp_modules.{k}.1" for k in range(4)] + ["bottleneck", "fpn_bottleneck"]
    blocks += [f"{kind}.{level}" for kind in ("lateral_convs", "fpn_convs") for level in range(3)]
    leaves = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    heads = [f"decode_head.{block}" for block in blocks] + ["auxiliary_head.convs.0"]
    expected = {f"{block}.{leaf}" for block in heads for leaf in leaves}
    expected |= {
        f"{head}_head.conv_seg.{leaf}" for head in ("decode", "auxiliary") for leaf in ("weight", "bias")
    }
    assert names == expected


def test_initial_weights() -> None:
    """Convolutions: variance 2 / (C_out k^2); classifiers: deviation 0.01; a function of the seed alone."""
    heads = UPerNetConfig(channels=64, auxiliary_channels=64)
    first, again, other = (build_segmenter(SMALL, heads, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.decode_head.conv_seg.weight, other.decode_head.conv_seg.weight)
    counted = 0
    for module in first.modules():
        if isinstance(module, ConvNormReLU):
            weight = module.conv.weight
            deviation = math.sqrt(2 / (weight.shape[0] * weight.shape[2] ** 2))
            # 5 standard errors of a standard deviation
            assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * weight.numel()))
            assert module.conv.bias is None
            counted += 1
        elif isinstance(module, PixelClassifier):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
            assert module.bias.abs().max() == 0
        elif isinstance(module, (GroupBatchNorm2d, nn.LayerNorm)):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert counted == 4 + 2 + 2 * 2 + 1
    norm = build_segmenter(KINDS["v2"], heads).encoder.layers[0].blocks[0].norm1
    assert norm.weight.abs().max() == 0  # SwinV2's rule holds inside


def test_dropout_drops_channels_by_the_key_of_an_image() -> None:
    """The same alone and in other company; kept channels are scaled; the share within 4.5 deviations."""
    dropout, ones = ChannelDropout(0.1, site=-2).train(), torch.ones(2000, 16, 2, 3)
    dropped = dropout(ones, KEYS)
    by_channel = dropped[:, :, 0, 0]
    assert torch.equal(dropped, by_channel[:, :, None, None].expand_as(dropped))
    assert by_channel.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    share = (by_channel == 0).double().mean().item()
    assert abs(share - 0.1) < 4.5 * math.sqrt(0.1 * 0.9 / by_channel.numel())
    assert torch.equal(dropout(ones[:1], KEYS[7:8])[0], dropped[7])
    assert not torch.equal(ChannelDropout(0.1, site=-3).train()(ones, KEYS), dropped)
    assert dropout.eval()(ones, KEYS) is ones


@pytest.mark.parametrize("kind", ["swin", "moe"])
def test_micro_batches_are_the_global_batch(kind: str) -> None:
    """Losses, gradients and running statistics of 4 images at once, and of 2 and 2, with all draws on."""
    images, labels = images_of(SMALL, 4), torch.arange(4 * 32 * 32).view(4, 32, 32).remainder(5)
    whole, cut = trained(kind, images, labels, 4), trained(kind, images, labels, 2)
    assert cut.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(
            cut[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text
        )


def trained(kind: str, images: Tensor, labels: Tensor, micro: int) -> dict[str, Tensor]:
    """The loss of a global batch in micro-batches, its gradients and the running statistics after it."""
    model, total = make(kind).train(), torch.zeros(())
    pieces = zip(images.split(micro), labels.split(micro), KEYS[:4].split(micro), strict=True)
    for some, targets, keys in pieces:
        output = model(some, keys)
        loss = segmentation_loss(output.logits, targets) + 0.4 * segmentation_loss(output.auxiliary, targets)
        loss = (loss + output.aux_loss) * micro / 4
        loss.backward()
        total += loss.detach()
    update_running_statistics(model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    statistics = {name: x.clone() for name, x in model.named_buffers() if "running" in name}
    return {"loss": total, **gradients, **statistics}


def test_images_are_evaluated_each_by_itself() -> None:
    """Of another size than the configured one, with running statistics."""
    model = make("v2").eval()
    images = images_of(replace(SMALL, image_size=(37, 50)), 3)
    together = model(images).logits
    assert together.shape == (3, 5, 10, 13)
    for image, logits in zip(images, together, strict=True):
        torch.testing.assert_close(model(image[None]).logits[0], logits, rtol=0, atol=1e-5)


def test_frozen_norms_do_not_move() -> None:
    model = build_segmenter(SMALL, replace(HEADS, norm_group_images=1, norm_frozen=True)).train()
    segmentation_loss(model(images_of(SMALL, 1), KEYS[:1]).logits, torch.zeros(1, 32, 32)).backward()
    update_running_statistics(model)
    assert all((x == ("var" in name)).all() for name, x in model.named_buffers() if "running" in name)
    assert model.decode_head.fpn_bottleneck.bn.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("heads", "model", "message"),
    [
        ({"channels": 0}, {}, "segmentation.head.channels (0) must be at least 1"),
        ({"pool_bins": ()}, {}, "segmentation.head.pool_bins ([]) must be one or more sides in 1..64"),
        (
            {"pool_bins": (1, 65)},
            {},
            "segmentation.head.pool_bins ([1, 65]) must be one or more sides in 1..64",
        ),
        ({"dropout": 1.0}, {}, "segmentation.head.dropout (1.0) must lie in [0, 1)"),
        (
            {"norm_group_images": 1},
            {},
            "segmentation.head.norm_group_images (1) must be at least 2 with a pool of one bin "
            "(segmentation.head.pool_bins=[1, 2, 3, 6]): the mean over an image has one value a channel, "
            "which has no variance",
        ),
        (
            {"auxiliary_stage": 3},
            {},
            "segmentation.head.auxiliary_stage (3) must be a stage of model.depths ([1, 2, 1]), which are "
            "0..2",
        ),
        (
            {},
            {"depths": (2,), "num_heads": (2,)},
            "UPerNet needs at least two maps: model.depths ([2]) has 1 stage",
        ),
        (
            {},
            {"num_classes": 256},
            "model.num_classes (256) must be at most 255 for segmentation: labels have 8 bits, and 255 is an "
            "ignored pixel",
        ),
    ],
)
def test_errors(heads: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        check_model(replace(SMALL, **model), UPerNetConfig(**heads))
