"""Models of clips: torchvision's swin3d with the same weights, published sizes, and ranks.

Legend: B clips of D frames of h x w pixels, C channels.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

from parallel.ranks.collectives import sum_over
from parallel.ranks.mesh import ParallelDims, build_mesh
from swin_moe import ModelConfig, SwinTransformer, build_backbone, build_model
from swin_moe.backbone.flops import build_on_meta, count_flops, count_parameters
from swin_moe.backbone.model import HEAD_SITE
from swin_moe.random.keyed import Dropout, sample_keys
from tests.distributed import run_on_ranks
from tests.models import V2, images_of, randn, randomize, randomize_by_fan_in, small_moe, small_swin

SLOW = pytest.mark.slow
SMALL = small_swin(frames=8, window_frames=2, window_size=3, window_padding="fitted")
RELEASED = small_swin(
    frames=16,
    image_size=112,
    depths=(2, 2, 2),
    num_heads=(2, 2, 4),
    window_size=7,
    window_padding="fitted",
)
KINDS: dict[str, dict[str, Any]] = {
    "swin": {},
    "v2": V2,
    "log_cpb": {"position_bias": "log_cpb"},
    "moe": {"moe": small_moe(top_k=2)},
    "mlp": {"attention": "mlp", "window_padding": "hidden"},
}


# The same weights in torchvision.


def their_name(name: str) -> str:
    """torchvision's name of one of our parameters: merging and blocks of stages are `features` in turn."""
    head, _, rest = name.partition(".")
    if head != "layers":
        return name
    stage, part, rest = rest.split(".", 2)
    if part == "merge":
        return f"features.{2 * int(stage) - 1}.{rest}"
    block, rest = rest.split(".", 1)
    for ours, theirs in {
        "attention.position_bias.": "attn.",
        "attention.": "attn.",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }.items():
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
            break
    return f"features.{2 * int(stage)}.{block}.{rest}"


def pair(config: ModelConfig) -> tuple[SwinTransformer, nn.Module]:
    """Our model and torchvision's, in evaluation, with the same random weights."""
    theirs = SwinTransformer3d(
        patch_size=list(config.patch_sides),
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=list(config.stage_window(0)),
        num_classes=config.num_classes,
        stochastic_depth_prob=0.0,
    ).eval()
    ours, weights = build_model(config).eval(), dict(randomize_by_fan_in(theirs).named_parameters())
    assert len(weights) == len(list(ours.parameters()))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights[their_name(name)])
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("window_frames", [8, 4, 3])
@pytest.mark.parametrize(
    "sides",
    [
        (16, 112, 112),  # maps of 8 x 28 x 28, 14 and 7: the last one is one window along each side
        (8, 112, 112),  # half of the window along time
        (7, 50, 37),  # no side is a multiple of anything
        (5, 20, 90),  # heights of 5, 3 and 2 tokens, below windows of 7: their index of small maps
        (2, 8, 8),
        (1, 3, 60),
    ],
    ids=str,
)
def test_logits_equal_those_of_torchvision(sides: tuple[int, ...], window_frames: int) -> None:
    ours, theirs = pair(replace(RELEASED, window_frames=window_frames))
    clips = randn(2 if sides[-1] < 112 else 1, 3, *sides)
    torch.testing.assert_close(ours(clips).logits, theirs(clips), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sides", [(7, 50, 37), (9, 20, 28)], ids=str)
def test_gradients_equal_those_of_torchvision(sides: tuple[int, ...]) -> None:
    ours, theirs = (model.double() for model in pair(replace(RELEASED, window_frames=2)))
    clips = [randn(2, 3, *sides, dtype=torch.float64).requires_grad_() for _ in range(2)]
    for logits in (ours(clips[0]).logits, theirs(clips[1])):
        logits.square().sum().backward()
    weights = dict(theirs.named_parameters())
    torch.testing.assert_close(clips[0].grad, clips[1].grad, rtol=1e-7, atol=1e-7)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[their_name(name)].grad, rtol=1e-6, atol=1e-7)


# What the released models cost.

TINY = ModelConfig(frames=32, num_classes=400, window_padding="fitted")
SMALL_KINETICS = replace(TINY, depths=(2, 2, 18, 2))
BASE = replace(SMALL_KINETICS, embed_dim=128, num_heads=(4, 8, 16, 32))
LARGE = replace(SMALL_KINETICS, embed_dim=192, num_heads=(6, 12, 24, 48))


@pytest.mark.parametrize(
    ("config", "parameters", "giga"),
    [
        (TINY, 28_158_070, 87.76),
        (SMALL_KINETICS, 49_816_678, 165.68),
        pytest.param(BASE, 88_048_984, 281.33, marks=SLOW),
        pytest.param(LARGE, 196_953_916, 603.27, marks=SLOW),
        pytest.param(replace(BASE, window_frames=16, num_classes=174), 88_834_038, 320.36, marks=SLOW),
        pytest.param(replace(LARGE, image_size=384, window_size=12), 199_999_516, 2106.38, marks=SLOW),
        (replace(TINY, frames=16), 28_158_070, 43.88),  # torchvision's swin3d_t, at half of the frames
    ],
    ids=["T", "S", "B", "L", "B-SSv2", "L-384", "T-16"],
)
def test_parameters_and_products(config: ModelConfig, parameters: int, giga: float) -> None:
    """To the unit; multiply-adds of a clip of 32 x 224 x 224 with those of the attention."""
    model = build_on_meta(config)
    assert count_parameters(model) == parameters
    assert round(count_flops(model) / 1e9, 2) == giga


def test_a_large_clip_keeps_few_masks() -> None:
    """8 distinct masks of 392 x 392 tokens for the 128 windows of the first stage: 4.9 MB instead of 79."""
    model = build_backbone(TINY)
    shifted = model.layers[0].blocks[1]
    assert shifted.mask is None
    mask = shifted.options.masks.mask(TINY.stage_resolution(0), torch.device("cpu"))
    assert mask.masks.nbytes == 8 * 392 * 392 * 4
    # the windows that no edge crosses, those at the end of the width, of the height, of both; then of time
    assert mask.counts == (1 * 7 * 7, 7, 7, 1, 49, 7, 7, 1)
    assert max(buffer.nbytes for buffer in model.buffers()) == 392 * 392 * 8  # an index of biases


# What a clip shares with an image.


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_pooling(kind: str) -> None:
    """Time keeps its length; the features are the mean over all tokens; any clip has its maps."""
    config = replace(SMALL, **KINDS[kind])
    model = randomize_by_fan_in(build_model(config)).eval()
    for clips, time, side in ((images_of(config), 4, 8), (randn(2, 3, 5, 20, 20), 3, 5)):
        features = model.forward_features(clips)
        halved = -(-side // 2)
        assert [tuple(m.shape) for m in features.maps] == [
            (2, time, side, side, 8),
            (2, time, halved, halved, 16),
        ]
        pooled, _ = model.forward_pooled(clips)
        last = model.norm(features.maps[-1])
        torch.testing.assert_close(pooled, last.flatten(1, 3).mean(1))
        torch.testing.assert_close(model(clips).logits, model.head(pooled))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_depend_on_its_batch(kind: str) -> None:
    """Two micro-batches of two clips are one of four: logits and gradients, with all draws and drops."""
    config = replace(SMALL, **KINDS[kind], drop_rate=0.1, head_dropout=0.5, drop_path_rate=0.3)
    model = randomize(build_model(config), std=0.2).double().train()
    clips, keys = images_of(config, 4, dtype=torch.float64), sample_keys(3, torch.arange(4))

    def run(parts: list[slice]) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        outputs = [model(clips[part], keys[part]) for part in parts]
        # a balance loss is a mean over routing groups, of which both micro-batches have the same number
        losses = [out.logits.square().sum() / 4 + out.aux_loss / len(parts) for out in outputs]
        sum(losses).backward()
        return torch.cat([out.logits for out in outputs]), [p.grad.clone() for p in model.parameters()]

    whole, of_whole = run([slice(4)])
    parts, of_parts = run([slice(2), slice(2, 4)])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)
    for a, b in zip(of_parts, of_whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["swin", "v2", "moe"])
@pytest.mark.parametrize("options", [{"attention_chunk": 3}, {"activation_checkpoint_every": 1}], ids=str)
def test_saving_memory_changes_nothing(kind: str, options: dict[str, int]) -> None:
    config = replace(SMALL, **KINDS[kind], drop_path_rate=0.3, head_dropout=0.2)
    clips, keys, gradients = images_of(config), sample_keys(0, torch.arange(2)), []
    for changes in ({}, options):
        model = randomize(build_model(replace(config, **changes)), std=0.1).train()
        output = model(clips, keys)
        (output.logits.square().sum() + output.aux_loss).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_of_the_head_moves_no_other_draw() -> None:
    """Logits are those of the pooled features of a model without it, of which elements are left out."""
    plain, dropping = (
        randomize(build_model(replace(SMALL, drop_path_rate=0.4, drop_rate=0.2, head_dropout=rate))).train()
        for rate in (0.0, 0.5)
    )
    clips, keys = images_of(SMALL, 8), sample_keys(1, torch.arange(8))
    pooled, _ = plain.forward_pooled(clips, keys)
    assert torch.equal(dropping.forward_pooled(clips, keys)[0], pooled)
    dropped = Dropout(0.5, HEAD_SITE).train()(pooled, keys)
    assert 30 < (dropped == 0).sum() < 98  # of 128, at a half
    assert torch.equal(dropping(clips, keys).logits, dropping.head(dropped))
    assert torch.equal(dropping.eval()(clips).logits, plain.eval()(clips).logits)


def test_initial_weights() -> None:
    """The classifier of clips starts at a standard deviation of 0.01; that of images at `init_std`."""
    clips, images = (
        build_model(small_swin(embed_dim=64, num_classes=400, frames=frames)) for frames in (4, 0)
    )
    assert 0.0095 < clips.head.weight.std() < 0.0105
    assert clips.head.bias.abs().max() == 0
    assert 0.016 < images.head.weight.std() < 0.02  # a normal of 0.02 cut off at two of them has 0.0176
    assert clips.patch_embed.proj.weight.shape == (64, 3, 2, 4, 4)
    bound = (3 * 2 * 4 * 4) ** -0.5
    assert 0.99 * bound < clips.patch_embed.proj.weight.abs().max() <= bound


# Experts over ranks.

EXPERTS = replace(
    SMALL, moe=small_moe(top_k=2, capacity_factor=1.0, routing_group_images=1), drop_path_rate=0.2
)


def gradients_of(first: int, count: int, ranks: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of some clips, and gradients of the mean loss of all: of dense parameters, and own experts."""
    mesh = build_mesh(ParallelDims(world_size=ranks, ep_size=ranks)) if ranks > 1 else None
    model = randomize_dense(build_model(EXPERTS, mesh=mesh)).train()
    clips, keys = images_of(EXPERTS, 2)[first : first + count], sample_keys(0, torch.arange(2))
    output = model(clips, keys[first : first + count])
    (output.logits.square().sum() / 2 + output.aux_loss / ranks).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    dense = {name: sum_over(grad) if ".experts." not in name else grad for name, grad in found.items()}
    return output.logits.detach(), dense


def randomize_dense(model: SwinTransformer) -> SwinTransformer:
    """Larger weights of what every rank has; experts keep their initial weights, which no layout changes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def on_rank() -> tuple[Tensor, dict[str, Tensor]]:
    return gradients_of(torch.distributed.get_rank(), 1, 2)


def test_experts_on_two_ranks_are_those_on_one() -> None:
    logits, alone = gradients_of(0, 2, 1)
    ranks = run_on_ranks(on_rank, 2)
    torch.testing.assert_close(torch.cat([of for of, _ in ranks]), logits, rtol=1e-4, atol=1e-5)
    for name, expected in alone.items():
        found = [gradients[name] for _, gradients in ranks]
        whole = torch.cat(found) if ".experts." in name else found[0]
        torch.testing.assert_close(
            whole, expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )
