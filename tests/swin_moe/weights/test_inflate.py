"""Weights of images in models of clips: a still clip gets the logits of its image."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from swin_moe import (
    ClassMap,
    ModelConfig,
    MoEConfig,
    SwinTransformer,
    WeightsError,
    build_backbone,
    build_model,
    load_weights,
    save_weights,
)
from swin_moe.heads.simmim import SimMIMConfig, build_simmim
from tests.models import V2, images_of, randn, randomize_by_fan_in, small_moe
from tests.swin_moe.weights.official_files import SWIN, cubic, randomized
from tests.swin_moe.weights.video_files import clips_of, still

SMALL = replace(SWIN, depths=(2, 2))  # maps of 6 x 6 tokens, whose windows of 3 are shifted, and of 3 x 3
SWIN_V2 = replace(SMALL, **V2)
SWIN_MOE = replace(SMALL, position_bias="log_cpb", mlp_fc2_bias=False)  # its dense baseline
KINDS = {"swin": SMALL, "swinv2": SWIN_V2, "swin_moe": SWIN_MOE}
DONE = "inflated from images: the patch embedding over 2 frames"
EXACT = {"rtol": 0, "atol": 1e-5}


def trained(config: ModelConfig) -> SwinTransformer:
    """A model of images whose every tensor matters."""
    return randomize_by_fan_in(build_model(config), seed=3).eval()


def inflated(
    source: SwinTransformer, config: ModelConfig, path: Path, format: str = "native"
) -> SwinTransformer:
    """A model of clips with the weights of one of images."""
    model = build_model(config, seed=9).eval()
    load_weights(model, save_weights(source, path, format))
    return model


def gap(model: SwinTransformer, source: SwinTransformer, frames: int) -> float:
    """How far the logits of still clips are from those of their images, at most."""
    images = images_of(source.config)
    with torch.no_grad():
        clips, expected = model(still(images, frames)).logits, source(images).logits
    assert expected.std() > 0.1
    return float((clips - expected).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_clip_has_the_logits_of_its_image(kind: str, tmp_path: Path) -> None:
    """Two windows in time, shifted; one window; and one that is shorter than configured.

    5 times are no multiple of windows of 2: the last window sees padding, and the logits are others. With
    hidden padding they are not.
    """
    source = trained(KINDS[kind])
    model = inflated(source, clips_of(KINDS[kind]), tmp_path / "x")
    assert max(gap(model, source, frames) for frames in (8, 4, 2)) < 1e-5
    assert gap(model, source, 10) > 1e-2
    hidden = clips_of(KINDS[kind], window_padding="hidden", frames=10)
    assert gap(inflated(source, hidden, tmp_path / "y"), source, 10) < 1e-5


def test_patches_of_more_frames(tmp_path: Path) -> None:
    """Patches of 3 frames, windows of 3 x 3 x 3: 18 frames are two windows."""
    source = trained(SMALL)
    model = inflated(source, clips_of(SMALL, patch_frames=3, window_frames=3, frames=18), tmp_path / "x")
    assert gap(model, source, 18) < 1e-5
    patches = model.patch_embed.proj.weight
    assert patches.shape == (8, 3, 3, 4, 4)
    torch.testing.assert_close(patches.sum(2), source.patch_embed.proj.weight)
    assert torch.equal(patches[:, :, 0], patches[:, :, 2])


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("swin", "official"),
        ("swin", "timm"),
        ("swinv2", "official"),
        ("swinv2", "timm"),
        ("swin_moe", "official"),
    ],
)
def test_released_formats(kind: str, format: str, tmp_path: Path) -> None:
    """The same as from our own files, and the report says what was done."""
    source, config = randomized(KINDS[kind]), clips_of(KINDS[kind])
    expected = inflated(source, config, tmp_path / "native")
    model = build_model(config, seed=5)
    report = load_weights(model, save_weights(source, tmp_path / "x.pth", format))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    what = "tables over 3 offsets in time"
    if kind != "swin":
        what = "networks by a coordinate of time with weights 0"
    assert report.changes == [f"{DONE}, 4 position bias {what}"]
    assert report.initial == {}


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    config = replace(SMALL, image_size=32, window_size=4)
    source = trained(config)
    model = inflated(source, clips_of(config), tmp_path / "folder", "hf")
    assert gap(model, source, 8) < 1e-5


def test_tables_of_another_window_are_resized_and_repeated(tmp_path: Path) -> None:
    """Windows of 3 to 2 x 4 x 4: each plane of the table is the one that a model of images would get."""
    source = randomized(SMALL)
    path = save_weights(source, tmp_path / "x.pth", "official")
    model = build_model(clips_of(replace(SMALL, window_size=4)))
    report = load_weights(model, path)
    assert report.changes[0] == "position bias: window 3 resized to 4, bicubic (4 tables)"
    old, new = (m.layers[0].blocks[1].attention.position_bias.table().detach() for m in (source, model))
    weights = cubic(5, 7)
    plane = torch.einsum("ai,bj,ijn->abn", weights, weights, old.view(5, 5, -1))
    torch.testing.assert_close(new.view(3, 7, 7, -1), plane.expand(3, -1, -1, -1))


def test_a_network_of_positions_learns_time(tmp_path: Path) -> None:
    """Its column of time is 0 after inflation and gets a gradient; the others are those of images."""
    source = trained(SWIN_V2)
    model = inflated(source, clips_of(SWIN_V2), tmp_path / "x").train()
    model(randn(2, 3, 8, 24, 24), torch.arange(2)).logits.square().sum().backward()
    for stage, block in ((0, 0), (0, 1), (1, 1)):
        own, theirs = (
            m.layers[stage].blocks[block].attention.position_bias.cpb_mlp[0].weight for m in (model, source)
        )
        assert not own[:, 0].any()
        assert torch.equal(own[:, 1:], theirs)
        assert own.grad is not None
        assert own.grad[:, 0].abs().max() > 1e-6


def test_windows_of_a_network_must_be_those_that_it_learned_with(tmp_path: Path) -> None:
    """Height and width as for images; the depth is the model's own, as nothing was learned of time."""
    path = save_weights(randomized(SWIN_V2), tmp_path / "x.pth", "official")
    larger = clips_of(replace(SWIN_V2, image_size=32, window_size=4))
    with pytest.raises(
        WeightsError, match=r"windows of \[3, 3\], the model's are \[4, 4\]: set model.pretrained"
    ):
        load_weights(build_model(larger), path)
    load_weights(build_model(replace(larger, pretrained_window_sizes=(3, 3))), path)


ROUTERS = {
    "linear": small_moe(top_k=2, normalize_gates=True),
    "cosine": small_moe(router="cosine"),
    "sigmoid": small_moe(router="sigmoid", top_k=2),
    "soft": small_moe(router="soft"),
}


@pytest.mark.parametrize("router", ROUTERS)
def test_experts_serve_the_tokens_of_a_still_clip_alike(router: str, tmp_path: Path) -> None:
    """Without a capacity, as evaluation is by default: every time has the experts of the image."""
    moe: MoEConfig = ROUTERS[router]
    config = replace(SWIN_MOE, moe=moe)
    source = trained(config)
    model = inflated(source, clips_of(config), tmp_path / "x")
    assert gap(model, source, 8) < 1e-5


def test_a_capacity_keeps_the_promise_where_it_drops_nothing(tmp_path: Path) -> None:
    """A still clip of 4 times wants each expert 4 times as often, and has 4 times the slots.

    With experts / top_k slots nothing can be dropped, and the logits are the image's. With fewer the first
    layer drops the same share, but the tokens of a place are not dropped at all times alike: other logits.
    """
    for factor, is_exact in ((4.0, True), (2.0, False)):
        config = replace(SWIN_MOE, moe=small_moe(eval_capacity_factor=factor))
        source = trained(config)
        model = inflated(source, clips_of(config), tmp_path / f"{factor}")
        assert (gap(model, source, 8) < 1e-5) == is_exact
        images = images_of(config)
        with torch.no_grad():
            found, wanted = model(still(images, 8)).moe, source(images).moe
        first = "layers.0.blocks.1"
        assert found[first].load.tolist() == [4 * load for load in wanted[first].load.tolist()]
        assert int(found[first].dropped) == 4 * int(wanted[first].dropped)
        assert (int(wanted[first].dropped) == 0) == is_exact


def test_a_hash_of_positions_is_another_in_a_clip(tmp_path: Path) -> None:
    """It sends the tokens of later times elsewhere: the limits of the promise."""
    config = replace(SWIN_MOE, moe=small_moe(router="hash"))
    source = trained(config)
    assert gap(inflated(source, clips_of(config), tmp_path / "x"), source, 8) > 1e-3


def test_experts_of_a_dense_model_of_images(tmp_path: Path) -> None:
    """Upcycled and inflated at once: gates that sum to 1 give the dense model's logits."""
    source = trained(SMALL)
    path = save_weights(source, tmp_path / "x", "native")
    model = build_model(clips_of(replace(SMALL, moe=small_moe(top_k=2, normalize_gates=True)))).eval()
    report = load_weights(model, path, upcycle_noise=0.0)
    assert [change.partition(":")[0] for change in report.changes] == ["inflated from images", "upcycled"]
    assert gap(model, source, 8) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_of_simmim(kind: str, tmp_path: Path) -> None:
    """The mask token is named, and the classifier is as ever."""
    config = KINDS[kind]
    source = randomize_by_fan_in(build_simmim(config, SimMIMConfig(mask_patch_size=8), seed=1), seed=4)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    model = build_model(clips_of(config), seed=2).eval()
    with pytest.raises(WeightsError, match="the weights have no classifier, the model has one of 5 classes"):
        load_weights(model, tmp_path / "x.pth")
    report = load_weights(model, tmp_path / "x.pth", head="replace")
    assert report.initial == {"classifier": 2}
    assert "the mask token, and the model has none" in report.dropped.values()
    image: Tensor = images_of(config)
    with torch.no_grad():
        expected, _ = source.encoder.eval().forward_pooled(image)
        found, _ = model.forward_pooled(still(image, 8))
    torch.testing.assert_close(found, expected, **EXACT)


def test_other_classes(tmp_path: Path) -> None:
    """1,000 of images for 400 of clips is the ordinary case."""
    source = trained(SMALL)
    path = save_weights(source, tmp_path / "x", "native")
    config = clips_of(replace(SMALL, num_classes=2))
    with pytest.raises(
        WeightsError, match=r"the weights have 5 classes, model.num_classes is 2.*head=replace"
    ):
        load_weights(build_model(config), path)
    model = build_model(config, seed=2)
    own = model.head.weight.detach().clone()
    report = load_weights(model, path, head="replace")
    assert torch.equal(model.head.weight, own)
    assert report.changes == [
        "classifier: the model's own of 2 classes stays, that of 5 classes is not used",
        f"{DONE}, 4 position bias tables over 3 offsets in time",
    ]
    load_weights(model, path, head=ClassMap(indices=(3, 0)))
    assert torch.equal(model.head.weight, source.head.weight[[3, 0]])


def test_parts_and_backbones(tmp_path: Path) -> None:
    """A backbone of clips takes that of images; the head alone needs no inflation."""
    source = trained(SMALL)
    path = save_weights(source, tmp_path / "x", "native")
    backbone = build_backbone(clips_of(SMALL), seed=2)
    load_weights(backbone, path)
    expected = inflated(source, clips_of(SMALL), tmp_path / "y")
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    model = build_model(clips_of(SMALL), seed=2)
    report = load_weights(model, path, parts=["head"])
    assert (report.loaded, report.changes) == (2, [])


def test_another_model_of_images_is_refused(tmp_path: Path) -> None:
    """Before anything is written: other patches, and another depth."""
    path = save_weights(trained(SMALL), tmp_path / "x", "native")
    with pytest.raises(
        WeightsError, match=r"patch_embed.proj.weight \[8, 3, 2, 4, 4\] instead of \[8, 3, 2, 2, 2\]"
    ):
        load_weights(build_model(clips_of(replace(SMALL, image_size=12, patch_size=2))), path)
    with pytest.raises(WeightsError, match="13 tensors of the model are missing"):
        load_weights(build_model(clips_of(replace(SMALL, depths=(3, 2)))), path)


def test_weights_of_clips_are_not_inflated_again(tmp_path: Path) -> None:
    """By content alone, from a file of ours."""
    first = inflated(trained(SMALL), clips_of(SMALL), tmp_path / "x")
    second = build_model(clips_of(SMALL), seed=1)
    report = load_weights(second, save_weights(first, tmp_path / "y", "native"))
    assert report.changes == []
    for name, parameter in second.named_parameters():
        assert torch.equal(parameter, first.get_parameter(name)), name
