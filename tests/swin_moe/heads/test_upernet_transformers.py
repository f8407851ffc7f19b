"""UPerNet on Swin against transformers' UperNetForSemanticSegmentation: the same weights, all random.

transformers has the rule of the released models for maps that are no multiple of the window, which is ours
with `window_padding=visible`. At 448 pixels and windows of 7 nothing is padded, and both rules agree.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ModelConfig
from swin_moe.heads.resize import resize
from swin_moe.heads.upernet import Segmenter, UPerNetConfig, build_segmenter
from tests.models import randn, randomize_by_fan_in
from tests.swin_moe.backbone.transformers_models import sources, transformers

HEADS = UPerNetConfig(channels=32, auxiliary_channels=16)
LEAVES = {"bn": "batch_norm", "conv_seg": "classifier"}


@cache
def ours_and_theirs(padding: str) -> tuple[Segmenter, nn.Module]:
    """Both models, small and in evaluation, with the same random weights and running statistics."""
    config = ModelConfig(
        image_size=448,
        num_classes=13,
        embed_dim=24,
        depths=(1, 2, 2, 2),
        num_heads=(1, 2, 3, 4),
        window_padding=padding,
    )
    backbone = transformers.SwinConfig(
        image_size=448,
        embed_dim=24,
        depths=[1, 2, 2, 2],
        num_heads=[1, 2, 3, 4],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    options = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=32,
        auxiliary_channels=16,
        auxiliary_in_channels=96,
        num_labels=13,
    )
    theirs = transformers.UperNetForSemanticSegmentation(options).eval()
    ours = build_segmenter(config, HEADS).eval()
    randomize_by_fan_in(theirs)
    state = theirs.state_dict()
    for seed, (name, values) in enumerate(state.items()):
        if name.endswith(("running_mean", "running_var")):
            values.copy_(randn(*values.shape, seed=seed).abs() + 0.5)
    constant = ("relative_position_index", "num_batches_tracked")
    last_norm = "backbone.swin.layernorm."  # of the pooled output, which no map passes
    unused = {name for name in state if not name.endswith(constant) and not name.startswith(last_norm)}
    with torch.no_grad():
        for name, values in ours.state_dict().items():
            if not name.endswith("relative_position_index"):
                names = their_names(name)
                values.copy_(torch.cat([state[one] for one in names]))
                unused -= set(names)
    assert not unused
    return ours, theirs


def their_names(name: str) -> list[str]:
    """Theirs, to be concatenated, for a tensor of ours."""
    part, _, own = name.partition(".")
    if part == "encoder":
        return [f"backbone.{source}" for source in sources(own, v2=False)]
    if part == "stage_norms":
        stage, leaf = own.split(".")
        return [f"backbone.hidden_states_norms.stage{int(stage) + 1}.{leaf}"]
    return [".".join(LEAVES.get(piece, piece) for piece in name.split("."))]


@torch.no_grad()
def check(padding: str, height: int, width: int) -> None:
    """Logits at the size of the image, and those of the auxiliary head at the size of its map."""
    ours, theirs = ours_and_theirs(padding)
    images = randn(1, 3, height, width, seed=height)
    expected = theirs(images).logits
    got = resize(ours(images).logits, (height, width))
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    maps = ours.stage_norms(ours.encoder.forward_features(images)).maps
    auxiliary = ours.auxiliary_head(maps[2].permute(0, 3, 1, 2), torch.zeros(1).long())
    torch.testing.assert_close(auxiliary, their_auxiliary(theirs, images), rtol=0, atol=1e-4)


def their_auxiliary(theirs: nn.Module, images: Tensor) -> Tensor:
    """The logits that their loss resizes."""
    logits: Tensor = theirs.auxiliary_head(theirs.backbone(images).feature_maps)
    return logits


def test_where_nothing_is_padded() -> None:
    check("hidden", 448, 448)
    with pytest.raises(AssertionError, match="not close"):  # the tensors differ where something is
        check("hidden", 37, 50)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (500, 333), (37, 50)])
def test_with_the_padding_of_the_released_models(height: int, width: int) -> None:
    check("visible", height, width)
