"""Swin and SwinV2 of transformers with the weights of a model of ours, and the comparison of both.

SwinV2 zero-initialises its norms, so fresh weights would prove nothing: here every tensor is random.
The names are mapped by hand, apart from swin_moe.weights.

transformers 5 differs from us, and from the papers' code, in three ways that the tests account for:
- its SwinV2 adds the shift mask of -100 twice, where ours is -inf; e^-100 and e^-200 are 0 beside 1 in fp32;
- it lets the zeros that pad a map to whole windows take part as keys; `hide_padding` gives its layers a mask
  found token by token, under which the whole models can be compared with padding too;
- it takes the side of a stage for image / (patch * 2^stage) rounded down, which misses that odd sides are
  rounded up by its own merging (SwinV2's shift), and its Swin has no smaller bias table for a small map.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ModelConfig, SwinTransformer, build_model
from tests.models import randomize_by_fan_in

transformers = pytest.importorskip("transformers", reason="pip install transformers")
Weights = dict[str, Tensor]
Source = Callable[[Weights], Tensor]

PLAIN = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
SWIN = PLAIN | {"attention.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
SWIN_V2 = PLAIN | {
    "attention.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
CPB = "position_bias.cpb_mlp"
TABLE = "relative_position_bias_table"


def block_sources(name: str, *, v2: bool) -> list[str]:
    """Theirs, to be concatenated, for a parameter of ours inside a block."""
    module, kind = name.rsplit(".", 1)
    if module == "attention.qkv" and not v2:
        return [f"attention.{part}_proj.{kind}" for part in "qkv"]
    if module == "attention.qkv":
        return [f"attention.self.{part}.{kind}" for part in ("query", "key", "value")]
    if kind in ("q_bias", "v_bias"):
        return [f"attention.self.{'query' if kind == 'q_bias' else 'value'}.bias"]
    if kind == "logit_scale":
        return ["attention.self.logit_scale"]
    if kind == TABLE:
        return [f"attention.relative_position_bias.{TABLE}"]
    if CPB in module:
        return [f"attention.self.continuous_position_bias_mlp.{module[-1]}.{kind}"]
    return [f"{(SWIN_V2 if v2 else SWIN)[module]}.{kind}"]


def sources(name: str, *, v2: bool) -> list[str]:
    """Theirs, to be concatenated, for a parameter of ours."""
    base, parts = "swinv2" if v2 else "swin", name.split(".")
    if parts[0] == "head":
        return [f"classifier.{parts[1]}"]
    if parts[0] == "norm":
        return [f"{base}.layernorm.{parts[1]}"]
    if parts[0] == "patch_embed":
        place = {"proj": "patch_embeddings.projection", "norm": "norm"}[parts[1]]
        return [f"{base}.embeddings.{place}.{parts[2]}"]
    stage = int(parts[1])
    if parts[2] == "merge":  # theirs ends a stage, ours begins the next one
        return [f"{base}.encoder.layers.{stage - 1}.downsample.{parts[3]}.{parts[4]}"]
    inside = block_sources(".".join(parts[4:]), v2=v2)
    return [f"{base}.encoder.layers.{stage}.blocks.{parts[3]}.{source}" for source in inside]


def ours_and_theirs(config: ModelConfig, *, clamped: bool = True) -> tuple[SwinTransformer, nn.Module]:
    v2 = config.attention == "cosine"
    options = {
        "image_size": list(config.image_sides),
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "num_labels": config.num_classes,
    }
    if v2:
        pretrained = list(config.pretrained_window_sizes or [0] * len(config.depths))
        options_v2 = transformers.Swinv2Config(**options, pretrained_window_sizes=pretrained)
        theirs = transformers.Swinv2ForImageClassification(options_v2).eval()
    else:
        theirs = transformers.SwinForImageClassification(transformers.SwinConfig(**options)).eval()
        shrink_tables(theirs, config)
    randomize_by_fan_in(theirs)
    if clamped:
        clamp_temperatures(theirs)
    ours = build_model(config).eval()
    weights = dict(theirs.named_parameters())
    names = {name: sources(name, v2=v2) for name, _ in ours.named_parameters()}
    used = [source for group in names.values() for source in group]
    assert sorted(used) == sorted(weights), "every tensor, once"
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.cat([weights[source] for source in names[name]]))
    return ours, theirs


@torch.no_grad()
def clamp_temperatures(theirs: nn.Module) -> None:
    """Raise the temperature of the first head of each layer beyond its bound."""
    for name, parameter in theirs.named_parameters():
        if name.endswith("logit_scale"):
            parameter[0] = math.log(100) + 0.5


def shrink_tables(theirs: nn.Module, config: ModelConfig) -> None:
    """Give transformers' Swin the bias of a map that is smaller than the window."""
    for stage, layer in enumerate(theirs.swin.encoder.layers):
        window = config.stage_window(stage)
        for block in layer.blocks:
            if window[0] < config.window_size:
                kind = type(block.attention.relative_position_bias)
                block.attention.relative_position_bias = kind(config.num_heads[stage], window)


def visible(side: int, window: int, shift: int) -> Tensor:
    """0 or -100 between the tokens of each window of a square map, from where each came: (S, n, n)."""
    padded = -(-side // window) * window
    places = [
        [(top + i, left + j) for i in range(window) for j in range(window)]
        for top in range(0, padded, window)
        for left in range(0, padded, window)
    ]

    def sees(a: tuple[int, int], b: tuple[int, int]) -> bool:
        origin_a, origin_b = ([(x + shift) % padded for x in place] for place in (a, b))
        real_a, real_b = max(origin_a) < side, max(origin_b) < side
        moved_alike = all(origin_a[d] - origin_b[d] == a[d] - b[d] for d in (0, 1))
        return moved_alike if real_a and real_b else real_a == real_b

    rows = [[[0.0 if sees(a, b) else -100.0 for b in window] for a in window] for window in places]
    return torch.tensor(rows)


def hide_padding(theirs: nn.Module, config: ModelConfig) -> None:
    """Give every layer the shift and the mask of its true map, padding hidden."""
    for stage, layer in enumerate(theirs.base_model.encoder.layers):
        side, window = config.stage_resolution(stage)[0], config.stage_window(stage)[0]
        for i, block in enumerate(layer.blocks):
            assert block.window_size == window or config.attention == "dot"  # Swin decides in its forward
            block.shift_size = window // 2 if i % 2 and side > window else 0
            mask = visible(side, window, block.shift_size)
            block.get_attn_mask = lambda *_args, _mask=mask, **_options: _mask


def compare(
    ours: SwinTransformer,
    theirs: nn.Module,
    config: ModelConfig,
    *,
    images: int = 2,
    logits: float = 1e-5,
    gradient: float = 1e-4,
) -> None:
    """Logits to an absolute 1e-5, and every gradient to 1e-4 of its largest entry."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, 3, *config.image_sides, generator=generator)
    x = x.to(ours.head.weight.dtype)
    with torch.no_grad():  # the bias is kept in one and computed in the other
        kept = ours(x).logits
    got, expected = ours(x).logits, theirs(x).logits
    torch.testing.assert_close(kept, got, rtol=0, atol=logits)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=logits)
    cotangent = torch.randn(got.shape, generator=generator).to(x.dtype)
    got.backward(cotangent)
    expected.backward(cotangent)
    v2 = config.attention == "cosine"
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    worst = 0.0
    for name, parameter in ours.named_parameters():
        wanted = torch.cat([gradients[source] for source in sources(name, v2=v2)])
        assert wanted.abs().max() > 0, name
        error = ((parameter.grad - wanted).abs().max() / wanted.abs().max()).item()
        assert error < gradient, f"{name}: {error}"
        worst = max(worst, error)
    print(f"logits {(got - expected).abs().max():.1e}, gradients {worst:.1e}")
