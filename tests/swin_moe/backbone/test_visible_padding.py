"""Padding that attention sees, as in the released models of segmentation: plain loops, transformers, costs.

Legend: B images, H x W tokens, w side of a window, n = w * w, h heads, C channels, d = C / h.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ModelConfig, SwinTransformer, build_backbone, build_model
from swin_moe.backbone.attention import CosineAttention, WindowAttention
from swin_moe.backbone.block import BlockOptions, SwinBlock
from swin_moe.backbone.flops import cost
from swin_moe.backbone.position_bias import TableBias
from swin_moe.backbone.window_masks import WindowMasks
from swin_moe.backbone.windows import WindowGrid
from swin_moe.moe.layer import MoELayer
from swin_moe.random.keyed import SiteCounter, sample_keys
from tests.models import V2, images_of, randn, randomize, randomize_by_fan_in, small_moe, small_swin
from tests.swin_moe.backbone.transformers_models import sources, transformers

VISIBLE = small_swin(window_size=3, window_padding="visible")
KINDS = {
    "swin": VISIBLE,
    "v2": replace(VISIBLE, **V2),
    "log_cpb": replace(VISIBLE, position_bias="log_cpb"),
}
SIZES = [(8, 8), (7, 5), (3, 10), (2, 2), (9, 4), (1, 6), (1, 1)]  # smaller and larger than windows of 3


def region(place: int, side: int, window: int, shift: int) -> int:
    """Of a row (or column) of a padded and rolled map: before the last window, its first part, its second."""
    return int(place >= side - window) + int(place >= side - shift)


def mixed_by_loops(block: SwinBlock, x: Tensor) -> Tensor:
    """What the released code computes: pad with zeros, roll, attend window by window, roll back, cut.

    A plain block has no mask; in a shifted one tokens of two regions of the padded map do not meet.
    """
    _, height, width, channels = x.shape
    window, layer = block.grid.window[0], block.attention
    tall, wide = -(-height // window) * window, -(-width // window) * window
    shift = window // 2 if block.grid.shifted else 0
    full = x.new_zeros(len(x), tall, wide, channels)
    full[:, :height, :width] = x
    full = full.roll((-shift, -shift), dims=(1, 2))
    out = torch.empty_like(full)
    for top in range(0, tall, window):
        for left in range(0, wide, window):
            tokens = [(top + i, left + j) for i in range(window) for j in range(window)]
            regions = [(region(r, tall, window, shift), region(c, wide, window, shift)) for r, c in tokens]
            values = full[:, top : top + window, left : left + window].flatten(1, 2)
            sees = torch.tensor([[not shift or a == b for b in regions] for a in regions])
            mixed = attention_by_definition(layer, values, sees)
            out[:, top : top + window, left : left + window] = mixed.view(-1, window, window, channels)
    return out.roll((shift, shift), dims=(1, 2))[:, :height, :width]


def attention_by_definition(layer: WindowAttention, values: Tensor, sees: Tensor) -> Tensor:
    """One window of each image (B, n, C), where token i attends to the tokens j with `sees[i, j]`."""
    qkv = layer.project(values).view(*values.shape[:2], 3, layer.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, n, d)
    if isinstance(layer, CosineAttention):
        q, k = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (q, k))
        logits = q @ k.transpose(2, 3) * layer.logit_scale.exp()
    else:
        logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    weights = (logits + layer.position_bias()).exp() * sees
    weights = weights / weights.sum(-1, keepdim=True)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blocks_equal_plain_loops(kind: str, height: int, width: int) -> None:
    """Plain and shifted, outputs and gradients of the map and of every weight."""
    model = build_model(KINDS[kind]).double()
    randomize(model)
    x = randn(2, height, width, 8, seed=1, dtype=torch.float64).requires_grad_()
    cotangent = randn(2, height, width, 8, seed=4, dtype=torch.float64)
    for block in model.layers[0].blocks:
        got, expected = block.mix_windows(x), mixed_by_loops(block, x)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        inputs = [x, *block.attention.parameters()]
        for a, b in zip(
            torch.autograd.grad(got, inputs, cotangent, allow_unused=True),
            torch.autograd.grad(expected, inputs, cotangent, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shifted", "side", "expected"), [(False, 1, 2.0), (True, 1, 8.0), (False, 2, 5.0)])
def test_a_map_by_hand(shifted: bool, side: int, expected: float) -> None:
    """Windows of 2, all logits 0: a token becomes the mean of those that it sees. The tokens are 8, 4, 4, 4.

    A map of one token has three zeros beside it, of which a shift by one parts it. Two by two are a window.
    """
    grid = WindowGrid(window=(2, 2), shifted=shifted, padding="visible")
    layer = WindowAttention(1, 1, TableBias((2, 2), 1), qkv_bias=False)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))
        layer.proj.weight.fill_(1.0)
        layer.proj.bias.zero_()
    options = BlockOptions(dim=1, masks=WindowMasks(grid), resolution=(4, 4))
    block = SwinBlock(options, layer, nn.Identity(), sites=SiteCounter())
    x = torch.tensor([8.0, 4.0, 4.0, 4.0])[: side * side].view(1, side, side, 1)
    assert block.mix_windows(x)[0, 0, 0, 0].item() == expected


def both_rules(config: ModelConfig) -> tuple[SwinTransformer, SwinTransformer]:
    """One set of weights, for which both rules have tables of one size."""
    models = [build_model(replace(config, window_padding=rule)).eval() for rule in ("hidden", "visible")]
    randomize_by_fan_in(models[0])
    models[1].load_state_dict(models[0].state_dict())
    return models[0], models[1]


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, V2, {"position_bias": "log_cpb"}], ids=["swin", "v2", "log_cpb"])
def test_both_rules_agree_where_nothing_is_padded(kind: dict[str, str]) -> None:
    """448 pixels, windows of 7: maps of 112, 56, 28 and 14. At 512 they have 128, 64, 32 and 16 tokens."""
    config = small_swin(
        image_size=448, embed_dim=4, depths=(2,) * 4, num_heads=(1,) * 4, window_size=7, mlp_ratio=1.0
    )
    hidden, visible = both_rules(replace(config, **kind))
    for side, agrees in ((448, True), (512, False)):
        x = randn(1, 3, side, side)
        maps = zip(hidden.forward_features(x).maps, visible.forward_features(x).maps, strict=True)
        same = [torch.equal(a, b) for a, b in maps]
        assert same == [agrees] * 4
    # images of a size that is not configured: the mask is made anew
    x = randn(1, 3, 224 * 2, 224 * 4)
    a, b = (model.forward_features(x).maps[-1] for model in (hidden, visible))
    assert torch.equal(a, b)


def backbone_of_transformers(config: ModelConfig) -> nn.Module:
    """SwinBackbone or Swinv2Backbone with random weights, every shift half a window and no window clamped."""
    options = {
        "image_size": config.image_size,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "out_features": [f"stage{i + 1}" for i in range(len(config.depths))],
    }
    if config.attention == "dot":
        theirs = transformers.SwinBackbone(transformers.SwinConfig(**options)).eval()
    else:
        theirs = transformers.Swinv2Backbone(transformers.Swinv2Config(**options)).eval()
        for layer in theirs.encoder.layers:
            for i, block in enumerate(layer.blocks):
                assert block.window_size == config.window_size
                block.shift_size = config.window_size // 2 * (i % 2)
    return randomize_by_fan_in(theirs)


@torch.no_grad()
@pytest.mark.parametrize("v2", [False, True], ids=["swin", "v2"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 50), (500, 333), (112, 224)])
def test_maps_equal_those_of_transformers(v2: bool, height: int, width: int) -> None:
    """Windows of 7, all stages padded but at 112 x 224; at 37 x 50 the last map has 3 x 4 tokens."""
    config = small_swin(
        image_size=224, depths=(2, 2, 2), num_heads=(2, 2, 4), window_size=7, window_padding="visible"
    )
    config = replace(config, **V2) if v2 else config
    theirs = backbone_of_transformers(config)
    ours = build_backbone(config, norm=False).eval()
    weights = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        found = [source.removeprefix("swinv2.") for source in sources(name, v2=v2)]
        parameter.copy_(torch.cat([weights[source] for source in found]))
    ours.double(), theirs.double()  # the maps of SwinV2 would differ by 5e-5 in fp32
    x = randn(1, 3, height, width, dtype=torch.float64)
    features = ours.forward_features(x)
    expected = theirs(x, output_hidden_states=True)
    sides = [(-(-height // s), -(-width // s)) for s in (4, 8, 16)]
    assert [tuple(m.shape[1:3]) for m in features.maps] == sides
    for i, (got, wanted) in enumerate(zip(features.maps, expected.feature_maps, strict=True)):
        if not v2:
            got = theirs.hidden_states_norms[f"stage{i + 1}"](got)
        torch.testing.assert_close(got.permute(0, 3, 1, 2), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["hidden", "visible"])
@pytest.mark.parametrize("kind", [{}, V2], ids=["swin", "v2"])
@pytest.mark.parametrize(("height", "width"), [(37, 50), (500, 333), (3, 200)])
def test_maps_of_any_size(rule: str, kind: dict[str, str], height: int, width: int) -> None:
    """Sides rounded up, in a batch as alone, and the same after images of other sizes."""
    config = small_swin(**kind, window_padding=rule, depths=(2, 2, 1), num_heads=(1, 1, 1))
    model = randomize_by_fan_in(build_backbone(config, norm=False).eval())
    images = randn(2, 3, height, width)
    features = model.forward_features(images)
    assert features.strides == (4, 8, 16)
    expected = [(2, -(-height // s), -(-width // s), c) for s, c in zip((4, 8, 16), (8, 16, 32), strict=True)]
    assert [tuple(m.shape) for m in features.maps] == expected
    model.forward_features(randn(1, 3, width, height))
    for i in range(2):
        alone = model.forward_features(images[i : i + 1]).maps
        for got, whole in zip(alone, features.maps, strict=True):
            torch.testing.assert_close(got[0], whole[i], rtol=1e-5, atol=1e-5)
            assert got.isfinite().all()


def routed(model: nn.Module, images: Tensor) -> list[int]:
    """Tokens that reach each router for these images."""
    seen: list[int] = []
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.router.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    model.forward_features(images, sample_keys(0, torch.arange(len(images))))
    return seen


@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 50), (4, 4)])
def test_padding_reaches_no_router(height: int, width: int) -> None:
    """Windows of 3 pad every map; routers get the tokens of the map alone, and choose for each of them."""
    config = replace(VISIBLE, moe=small_moe(blocks=((0, 1), (1,)), top_k=2, routing_group_images=1))
    model = build_model(config).train()
    tokens = [2 * -(-height // s) * -(-width // s) for s in (4, 8)]
    assert routed(model, randn(2, 3, height, width)) == [tokens[0], tokens[0], tokens[1]]
    features = model.forward_features(randn(2, 3, height, width))
    assert [int(stats.load.sum()) for stats in features.moe.values()] == [
        2 * count for count in (tokens[0], tokens[0], tokens[1])
    ]


def padded_flops(config: ModelConfig, sides: Sequence[int]) -> int:
    """Multiply-adds of one image, from the architecture: attention on maps filled up to whole windows."""
    c, w, total = config.embed_dim, config.window_size, 0
    tokens = math.prod(-(-side // 4) for side in sides)
    total += tokens * 3 * 16 * c
    for stage, depth in enumerate(config.depths):
        height, width = (-(-side // (4 * 2**stage)) for side in sides)
        if stage:
            total += height * width * 4 * c * 2 * c
            c *= 2
        padded = -(-height // w) * w * -(-width // w) * w
        total += depth * (padded * (4 * c * c + 2 * w * w * c) + height * width * 8 * c * c)
    return total + c * config.num_classes


@pytest.mark.parametrize("sides", [(32, 32), (64, 40), (8, 100), (37, 50)])
def test_flops_count_the_padding(sides: tuple[int, int]) -> None:
    """A map of 2 tokens costs a window of 7 along that side too."""
    config = small_swin(image_size=sides, window_size=7, window_padding="visible")
    assert cost(config).flops == padded_flops(config, sides)


def test_tables_do_not_depend_on_the_image() -> None:
    """Of all windows 13 x 13 rows, where a map of 4 tokens has 7 x 7 with hidden padding."""
    config = small_swin(image_size=32, window_size=7, window_padding="visible")
    for size in (32, 448, (4, 500)):
        model = build_model(replace(config, image_size=size))
        tables = [len(p) for name, p in model.named_parameters() if name.endswith("bias_table")]
        assert tables == [169] * 4
    hidden = build_model(replace(config, window_padding="hidden"))
    tables = [len(p) for name, p in hidden.named_parameters() if name.endswith("bias_table")]
    assert tables == [169, 169, 49, 49]


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_activations_and_chunks_are_the_same(every: int) -> None:
    """With padded maps: `activation_checkpoint_every` and `attention_chunk` change no gradient."""
    config = replace(VISIBLE, drop_path_rate=0.3)
    images, keys, gradients = images_of(config), sample_keys(0, torch.arange(2)), []
    for options in ({}, {"activation_checkpoint_every": every, "attention_chunk": 4}):
        model = randomize(build_model(replace(config, **options)), std=0.1).train()
        model(images, keys).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
