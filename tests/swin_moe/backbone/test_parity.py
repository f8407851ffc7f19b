"""Swin and SwinV2 against the implementations of transformers, with the same weights."""

from collections.abc import Callable

import pytest
import torch

from swin_moe import ModelConfig
from tests.models import V2, randn
from tests.swin_moe.backbone.transformers_models import compare, hide_padding, ours_and_theirs


def swin(**options: object) -> ModelConfig:
    return ModelConfig(**options)


def swin_v2(**options: object) -> ModelConfig:
    return ModelConfig(**(V2 | options))


@pytest.mark.parametrize("config", [swin(), swin_v2(image_size=256, window_size=8)], ids=["swin", "v2"])
def test_tiny_equals_transformers(config: ModelConfig) -> None:
    """Swin-T at 224 and SwinV2-T at 256: one image, all weights random."""
    compare(*ours_and_theirs(config), config, images=1)


SMALL = {"embed_dim": 12, "depths": (2, 3, 2), "num_heads": (2, 3, 4), "num_classes": 7}
ODD = [
    # Maps of 12, 6, 3: window 5 divides none of them, and the last is smaller.
    SMALL | {"image_size": 48, "window_size": 5},
    # Maps of 18, 9, 5: window 4 divides none of them, and the merging of 9 pads.
    SMALL | {"image_size": 72, "window_size": 4},
    # Maps of 8, 4, 2: window 8 is more than two of them.
    SMALL | {"image_size": 32, "window_size": 8},
]


PRETRAINED = SMALL | {"image_size": 48, "window_size": 6, "pretrained_window_sizes": (4, 4, 2)}
SMALL_CASES = [(make, options) for make in (swin, swin_v2) for options in ODD] + [(swin_v2, PRETRAINED)]
SMALL_NAMES = [f"{make}-{maps}" for make in ("swin", "v2") for maps in ("12-6-3", "18-9-5", "8-4-2")]


@pytest.mark.parametrize(("make", "options"), SMALL_CASES, ids=[*SMALL_NAMES, "v2-pretrained"])
def test_odd_sizes_equal_transformers_with_padding_hidden(
    make: Callable[..., ModelConfig], options: dict[str, object]
) -> None:
    """In fp32; without the clamped temperature, whose softmax of 100 * cosine is all about rounding here."""
    config = make(**options)
    ours, theirs = ours_and_theirs(config, clamped=False)
    hide_padding(theirs, config)
    compare(ours, theirs, config)


@pytest.mark.usefixtures("cosine_in_double")
@pytest.mark.parametrize(("make", "options"), SMALL_CASES, ids=[*SMALL_NAMES, "v2-pretrained"])
def test_odd_sizes_equal_transformers_in_fp64(
    make: Callable[..., ModelConfig], options: dict[str, object]
) -> None:
    """To 1e-10, clamped temperature and all: what fp32 leaves open is rounding.

    The log-spaced offsets are fp32 in both and may differ in the last bit; ours are checked elsewhere.
    """
    config = make(**options)
    ours, theirs = ours_and_theirs(config)
    hide_padding(theirs, config)
    ours.double(), theirs.double()
    for stage, layer in zip(ours.layers, theirs.base_model.encoder.layers, strict=True):
        for block, other in zip(stage.blocks, layer.blocks, strict=True):
            if make is swin_v2:
                table = other.attention.self.relative_coords_table.view(-1, 2)
                torch.testing.assert_close(
                    block.attention.position_bias.coordinates, table, rtol=1e-6, atol=0
                )
                block.attention.position_bias.coordinates.copy_(table)
    compare(ours, theirs, config, logits=1e-10, gradient=1e-10)


def test_padding_is_what_differs_from_transformers() -> None:
    """Without the hidden padding the same weights give other logits: the tests above would notice."""
    config = swin(**ODD[0])
    ours, theirs = ours_and_theirs(config)
    x = randn(1, 3, 48, 48, seed=1)
    with torch.no_grad():
        assert (ours(x).logits - theirs(x).logits).abs().max() > 1e-3
