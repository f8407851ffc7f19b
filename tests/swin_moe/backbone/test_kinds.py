"""The other kinds of Swin and the sizes that do not divide, against independent arithmetic.

Legend: B images, H x W tokens, S windows an image, n = w * w tokens a window, h heads, C channels, d = C / h.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ModelConfig, SwinTransformer, build_backbone, build_model
from swin_moe.backbone.attention import CosineAttention, SpatialMLP
from swin_moe.backbone.block import BlockOptions, SwinBlock
from swin_moe.backbone.patch import PatchEmbed, PatchMerging
from swin_moe.backbone.position_bias import LogCpbBias
from swin_moe.backbone.window_masks import WindowMasks
from swin_moe.backbone.windows import WindowGrid
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import SiteCounter, sample_keys
from tests.models import V2, randn, randomize, small_moe, small_swin

SMALL = small_swin(window_size=3, drop_path_rate=0.2)
EXPERTS = small_moe(top_k=2, routing_group_images=1)
KINDS = {
    "swin": SMALL,
    "v2": replace(SMALL, **V2, extra_norm_period=2),
    "mlp": replace(SMALL, attention="mlp"),
    "moe": replace(SMALL, position_bias="log_cpb", drop_rate=0.1, moe=EXPERTS),
    "visible": replace(SMALL, window_padding="visible", moe=EXPERTS),
    "v2 visible": replace(SMALL, **V2, window_padding="visible"),
}


def double(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return randn(*shape, seed=seed, dtype=torch.float64)


# Swin-MLP.


def spatial_mlp(layer: SpatialMLP, window: Tensor, heads: int) -> Tensor:
    """One window (n, C): each head's channels are mixed over the tokens by its own (n, n) matrix."""
    n, channels = window.shape
    weight, bias = layer.spatial_mlp.weight[..., 0], layer.spatial_mlp.bias
    out = torch.zeros_like(window)
    for c in range(channels):
        head = c // (channels // heads)
        for i in range(n):
            out[i, c] = bias[head * n + i] + sum(weight[head * n + i, j] * window[j, c] for j in range(n))
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 4), (5, 3), (2, 4)])
def test_spatial_mlp_equals_plain_loops(height: int, width: int, shifted: bool) -> None:
    """Window 2, two heads; shifted: window - shift = 1 zero before and the rest after a side above 2."""
    layer = SpatialMLP(4, 2, (2, 2)).double()
    randomize(layer)
    assert layer.spatial_mlp.weight.shape == (2 * 4, 4, 1)
    masks = WindowMasks(WindowGrid(window=(2, 2), shifted=shifted, cyclic=False))
    options = BlockOptions(dim=4, masks=masks, resolution=(4, 4))
    block = SwinBlock(options, layer, nn.Identity(), sites=SiteCounter())
    x = double((2, height, width, 4))
    top, left = (1 if shifted and side > 2 else 0 for side in (height, width))
    tall, wide = 2 * -(-(top + height) // 2), 2 * -(-(left + width) // 2)
    padded = torch.zeros(2, tall, wide, 4, dtype=torch.float64)
    padded[:, top : top + height, left : left + width] = x
    for b in range(2):
        for row in range(0, tall, 2):
            for column in range(0, wide, 2):
                window = padded[b, row : row + 2, column : column + 2].reshape(4, 4).clone()
                mixed = spatial_mlp(layer, window, 2)
                padded[b, row : row + 2, column : column + 2] = mixed.view(2, 2, 4)
    expected = padded[:, top : top + height, left : left + width]
    torch.testing.assert_close(block.mix_windows(x), expected, rtol=1e-12, atol=1e-12)


# SwinV2's attention.


def log_offset(x: int, span: int) -> float:
    return math.copysign(math.log2(1 + 8 * abs(x) / span) / 3, x) if x else 0.0


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(
    ("window", "pretrained"),
    [((3, 3), None), ((4, 4), (3, 3)), ((2, 2), (5, 5)), ((1, 1), None)]
    + [((2, 4), None), ((4, 2), (3, 5)), ((1, 3), (4, 4))],
)
def test_log_cpb_equals_plain_arithmetic(
    window: tuple[int, int], pretrained: tuple[int, int] | None, sigmoid: bool
) -> None:
    """sign(x) log2(1 + 8 |x| / (w' - 1)) / log2(8), two layers with a ReLU, 16 * sigmoid; w' is the
    pretrained window where there is one."""
    bias = LogCpbBias(window, 2, sigmoid=sigmoid, pretrained_window=pretrained, hidden=7).double()
    randomize(bias)
    first, last = bias.cpb_mlp[0], bias.cpb_mlp[2]
    got = bias()
    tall, wide = (max(side - 1, 1) for side in pretrained or window)
    n, w = window[0] * window[1], window[1]
    assert got.shape == (2, n, n)
    for i in range(n):
        for j in range(n):
            at = [log_offset(i // w - j // w, tall), log_offset(i % w - j % w, wide)]
            hidden = [
                max(0.0, (first.weight[k, 0] * at[0] + first.weight[k, 1] * at[1] + first.bias[k]).item())
                for k in range(7)
            ]
            for head in range(2):
                value = sum(last.weight[head, k].item() * hidden[k] for k in range(7))
                value = 16 / (1 + math.exp(-value)) if sigmoid else value
                assert got[head, i, j].item() == pytest.approx(value, abs=1e-5)  # offsets are fp32


@pytest.mark.usefixtures("cosine_in_double")
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_cosine_attention_equals_plain_loops(qkv_bias: bool) -> None:
    """Equation 2: cos(q, k) * min(exp(s), 100) + bias; keys have no bias; one head is clamped."""
    c, heads, window = 6, 2, (2, 2)
    layer = CosineAttention(c, heads, LogCpbBias(window, heads, sigmoid=True, hidden=5), qkv_bias=qkv_bias)
    layer.double()
    randomize(layer)
    with torch.no_grad():
        layer.logit_scale.copy_(torch.tensor([math.log(7.0), 5.5]).view(2, 1, 1))  # log 100 = 4.6
    mask = WindowGrid(window=window, shifted=True).mask(4, 4)
    x = double((8, 4, c)).requires_grad_()
    bias, outputs, d = layer.position_bias(), [], c // heads
    zeros = torch.zeros(c, dtype=torch.float64)
    shifts = (layer.q_bias, zeros, layer.v_bias) if qkv_bias else (zeros, zeros, zeros)
    for number, tokens in enumerate(x):
        q, k, v = (tokens @ layer.qkv.weight[part * c : (part + 1) * c].T + shifts[part] for part in range(3))
        head_outputs = []
        for head, temperature in enumerate((layer.logit_scale[0, 0, 0].exp(), 100.0)):
            own = slice(head * d, (head + 1) * d)
            rows = []
            for i in range(4):
                logits = []
                for j in range(4):
                    a, b = q[i, own], k[j, own]
                    cosine = (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
                    logits.append(cosine * temperature + bias[head, i, j] + mask[number % 4, i, j])
                weights = torch.stack(logits).softmax(0)
                rows.append((weights[:, None] * v[:, own]).sum(0))
            head_outputs.append(torch.stack(rows))
        outputs.append(torch.cat(head_outputs, 1) @ layer.proj.weight.T + layer.proj.bias)
    got, expected = layer(x, mask), torch.stack(outputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    cotangent = double(tuple(got.shape), seed=3)
    inputs = [x, *layer.parameters()]
    pairs = zip(
        torch.autograd.grad(got, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent, allow_unused=True),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    (scale_gradient,) = torch.autograd.grad(layer(x, mask), layer.logit_scale, cotangent)
    assert scale_gradient[0] != 0
    assert scale_gradient[1] == 0  # clamped


def test_post_norm_and_main_norm_by_hand() -> None:
    """SwinV2: x + norm1(mixer(x)), then + norm2(mlp(x)), then the norm of the main branch."""
    model = build_model(replace(KINDS["v2"], window_size=8, drop_path_rate=0.0)).double()
    randomize(model)
    block, plain = model.layers[0].blocks[1], model.layers[0].blocks[0]
    assert block.main_norm is not None
    assert plain.main_norm is None
    x = double((2, 8, 8, 8))
    keys = torch.zeros(2).long()
    y = x + block.norm1(block.attention(x.view(2, 64, 8)).view_as(x))
    z = y + block.norm2(block.mlp(y.flatten(1, 2), keys)[0].view_as(y))
    torch.testing.assert_close(block(x, keys)[0], block.main_norm(z), rtol=1e-6, atol=1e-6)


# Any size.


def padded_by_hand(block: SwinBlock, x: Tensor, filler: float) -> Tensor:
    """`block.mix_windows` of a map whose padding to whole windows holds `filler` instead of zeros."""
    _, height, width, channels = x.shape
    h, w = block.grid.window
    tall, wide = -(-height // h) * h, -(-width // w) * w
    shift = [s // 2 if block.grid.shifted and side > s else 0 for side, s in ((tall, h), (wide, w))]
    full = torch.full((len(x), tall, wide, channels), filler, dtype=x.dtype)
    full[:, :height, :width] = x
    full = full.roll((-shift[0], -shift[1]), dims=(1, 2))
    windows = full.view(-1, tall // h, h, wide // w, w, channels).transpose(2, 3).reshape(-1, h * w, channels)
    mixed = block.attention(windows, block.grid.mask(height, width))
    mixed = mixed.view(-1, tall // h, wide // w, h, w, channels).transpose(2, 3).reshape(full.shape)
    return mixed.roll(shift, dims=(1, 2))[:, :height, :width]


@pytest.mark.parametrize("kind", ["swin", "v2"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (3, 10), (2, 2), (9, 4), (1, 6)])
@pytest.mark.parametrize("image_size", [32, (8, 32), (32, 4)], ids=["3x3", "2x3", "3x1"])  # the windows
def test_real_tokens_do_not_see_the_padding(
    kind: str, height: int, width: int, image_size: int | tuple[int, int]
) -> None:
    """Whatever the padding holds, and with it left out altogether: attention over the real tokens alone."""
    model = build_model(replace(KINDS[kind], image_size=image_size)).double()
    randomize(model)
    x = double((2, height, width, 8)).requires_grad_()
    for block in model.layers[0].blocks:
        got = block.mix_windows(x)
        for filler in (0.0, 1.0, -1e4):
            assert torch.equal(got, padded_by_hand(block, x, filler)) or (
                (got - padded_by_hand(block, x, filler)).abs().max() < 1e-12
            )
        expected = attention_by_coordinates(block, x)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        inputs = [x, *block.attention.parameters()]
        cotangent = double(tuple(x.shape), seed=4)
        for a, b in zip(
            torch.autograd.grad(got, inputs, cotangent, allow_unused=True),
            torch.autograd.grad(expected, inputs, cotangent, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def attention_by_coordinates(block: SwinBlock, x: Tensor) -> Tensor:
    """Each group of real tokens that share a window attends on its own: no mask, no padding.

    Tokens share a window if their shifted coordinates lie in one and none of them has wrapped alone.
    """
    _, height, width, channels = x.shape
    (h, w), layer = block.grid.window, block.attention
    sides = [-(-height // h) * h, -(-width // w) * w]
    shift = [s // 2 if block.grid.shifted and side > s else 0 for side, s in zip(sides, (h, w), strict=True)]
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for row in range(height):
        for column in range(width):
            place = [(row - shift[0]) % sides[0], (column - shift[1]) % sides[1]]
            name = (place[0] // h, place[1] // w, row < shift[0], column < shift[1])
            groups.setdefault(name, []).append((row, column))
    out, bias = torch.empty_like(x), layer.position_bias()
    for tokens in groups.values():
        within = torch.tensor(
            [(r - shift[0]) % sides[0] % h * w + (c - shift[1]) % sides[1] % w for r, c in tokens]
        )
        values = torch.stack([x[:, r, c] for r, c in tokens], 1)  # (B, m, C)
        qkv = layer.project(values).view(len(x), len(tokens), 3, layer.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if isinstance(layer, CosineAttention):
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            logits = q @ k.transpose(2, 3) * layer.logit_scale.exp()
        else:
            logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        logits = logits + bias[:, within][:, :, within]
        mixed = layer.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        for i, (r, c) in enumerate(tokens):
            out[:, r, c] = mixed[:, i]
    return out


def test_patches_of_odd_images() -> None:
    """5 x 7 pixels, patch 4: 2 x 2 patches, the missing pixels zero."""
    layer = PatchEmbed((4, 4), 3, 6)
    images = randn(2, 3, 5, 7)
    whole = torch.zeros(2, 3, 8, 8)
    whole[:, :, :5, :7] = images
    assert layer(images).shape == (2, 2, 2, 6)
    assert torch.equal(layer(images), layer(whole))


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 3), (1, 1), (2, 4)])
def test_merging_of_odd_maps_equals_plain_loops(height: int, width: int, post_norm: bool) -> None:
    layer = PatchMerging(2, post_norm=post_norm).double()
    randomize(layer)
    x = double((2, height, width, 2))
    y = layer(x)
    assert y.shape == (2, (height + 1) // 2, (width + 1) // 2, 4)

    def norm(values: Tensor) -> Tensor:
        centred = values - values.sum() / len(values)
        scaled = centred / (centred.square().sum() / len(values) + 1e-5).sqrt()
        return scaled * layer.norm.weight + layer.norm.bias

    def token(b: int, row: int, column: int) -> Tensor:
        inside = row < height and column < width
        return x[b, row, column] if inside else torch.zeros(2, dtype=torch.float64)

    for b in range(2):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                # column by column
                four = [token(b, 2 * i + r, 2 * j + c) for c in (0, 1) for r in (0, 1)]
                side_by_side = torch.cat(four)
                weight = layer.reduction.weight
                expected = norm(weight @ side_by_side) if post_norm else weight @ norm(side_by_side)
                torch.testing.assert_close(y[b, i, j], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 50), (8, 32), (5, 3)])
def test_forward_features_are_the_stages_maps(kind: str, height: int, width: int) -> None:
    """Of any size, larger or smaller than the windows; the logits follow from the last map."""
    model = build_model(KINDS[kind]).double().eval()
    randomize(model)
    maps: list[Tensor] = []
    for stage in model.layers:
        stage.register_forward_hook(lambda _module, _inputs, output: maps.append(output[0]))
    images = double((2, 3, height, width))
    features = model.forward_features(images).maps
    expected = [(2, -(-height // s), -(-width // s), c) for s, c in ((4, 8), (8, 16))]
    assert [tuple(x.shape) for x in features] == expected
    assert all(torch.equal(a, b) for a, b in zip(features, maps, strict=True))
    logits = model(images).logits
    pooled = model.norm(features[-1]).flatten(1, 2).mean(1)
    torch.testing.assert_close(logits, pooled @ model.head.weight.T + model.head.bias, rtol=1e-9, atol=1e-9)
    assert logits.isfinite().all()


def test_forward_features_have_four_strides() -> None:
    with torch.device("meta"):
        model = SwinTransformer(ModelConfig()).eval()
    features = model.forward_features(torch.empty(1, 3, 200, 333, device="meta"))
    assert features.strides == (4, 8, 16, 32)
    assert [tuple(x.shape) for x in features.maps] == [
        (1, 50, 84, 96),
        (1, 25, 42, 192),
        (1, 13, 21, 384),
        (1, 7, 11, 768),
    ]


def test_forward_features_have_the_statistics_of_forward() -> None:
    """With overrides too; maps of 8 x 8 and 4 x 4 tokens with an MoE layer each."""
    model = build_model(KINDS["moe"]).eval()
    images, keys, call = randn(2, 3, 32, 32), sample_keys(0, torch.arange(2)), RoutingOverrides(top_k=3)
    for overrides in (None, call):
        features, output = (run(images, keys, overrides) for run in (model.forward_features, model))
        assert features.moe.keys() == output.moe.keys()
        assert len(features.moe) == 2
        for name, stats in output.moe.items():
            assert torch.equal(features.moe[name].load, stats.load)
        assert features.aux_loss == output.aux_loss
        choices = 2 if overrides is None else 3
        assert sum(int(stats.load.sum()) for stats in features.moe.values()) == choices * 2 * (64 + 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_is_the_classifier_without_its_head(kind: str) -> None:
    """In training, with all draws: the same maps, and the same logits from the pooled map."""
    config = replace(KINDS[kind], drop_rate=0.1, drop_path_rate=0.3)
    model, backbone = build_model(config, seed=1).train(), build_backbone(config, seed=1).train()
    images, keys = randn(2, 3, 37, 50), sample_keys(0, torch.arange(2))
    features, expected = backbone.forward_features(images, keys), model.forward_features(images, keys)
    assert all(torch.equal(a, b) for a, b in zip(features.maps, expected.maps, strict=True))
    assert features.strides == backbone.strides == (4, 8)
    assert tuple(x.shape[-1] for x in features.maps) == backbone.channels
    pooled, moe = backbone.forward_pooled(images, keys)
    assert torch.equal(model.head(pooled), model(images, keys).logits)
    assert moe.keys() == features.moe.keys()
    plain = build_backbone(config, norm=False, seed=1).train()
    assert torch.equal(plain.forward_pooled(images, keys)[0], expected.maps[-1].mean(dim=(1, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_map_is_the_same_image_by_image(kind: str) -> None:
    """Two images at once and one by one, where windows of both stand in one batch and the mask repeats."""
    model = build_model(KINDS[kind]).double().eval()
    randomize(model)
    images, keys = double((2, 3, 45, 30)), sample_keys(0, torch.arange(2))
    both = model(images, keys).logits
    alone = torch.cat([model(images[i : i + 1], keys[i : i + 1]).logits for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-6, atol=1e-6)
