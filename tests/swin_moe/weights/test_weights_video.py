"""Released models of clips in three dialects, in and out; torchvision's own model with the same weights."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swin_moe import (
    ClassMap,
    ModelConfig,
    SwinTransformer,
    WeightsError,
    build_backbone,
    build_model,
    load_weights,
    save_weights,
)
from swin_moe.backbone.flops import build_on_meta
from swin_moe.weights import video
from swin_moe.weights.converted import indexed_window
from swin_moe.weights.native import config_of
from tests.models import V2, randn, randomize_by_fan_in, small_moe
from tests.swin_moe.weights.official_files import BLOCK, SWIN, assert_same, cubic, randomized, rows, state
from tests.swin_moe.weights.video_files import CLIPS, DIALECTS, on_file, released, slow_index

INDEX = "relative_position_index"


def written(tensors: dict[str, Tensor], path: Path, dialect: str = "official") -> Path:
    torch.save(on_file(tensors, dialect), path)
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_tensor_of_a_released_file(dialect: str, tmp_path: Path) -> None:
    """Into a model of other values; what is not used are the three indices, which are those of the model."""
    source, model = randomized(CLIPS), randomized(CLIPS, seed=2)
    tensors = released(source, dialect)
    report = load_weights(model, written(tensors, tmp_path / "clips.pth", dialect))
    assert_same(model, source)
    assert report.format == DIALECTS[dialect]
    indices = [name.removeprefix("backbone.") for name in tensors if name.endswith(INDEX)]
    assert report.dropped == dict.fromkeys(indices, "a buffer, computed anew")
    assert report.loaded + len(report.dropped) == len(tensors)
    assert (report.changes, report.initial) == ([], {})
    for block in (model.layers[0].blocks[0], model.layers[1].blocks[0]):
        assert torch.equal(block.attention.position_bias.index, slow_index((2, 3, 3)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_written_files_are_released_ones(dialect: str, tmp_path: Path) -> None:
    """By name and value; read again they are the model, and written again the file."""
    source, model = randomized(CLIPS), build_model(CLIPS)
    first = save_weights(source, tmp_path / "first.pth", dialect)
    content = torch.load(first, weights_only=True)
    tensors = content if dialect == "torchvision" else content["state_dict"]
    expected = released(source, dialect)
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    load_weights(model, first)
    assert_same(model, source)
    second = torch.load(save_weights(model, tmp_path / "second.pth", dialect), weights_only=True)
    again = second if dialect == "torchvision" else second["state_dict"]
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("config", [CLIPS, replace(CLIPS, **V2), replace(CLIPS, moe=small_moe())])
def test_our_own_files_hold_any_model_of_clips(config: ModelConfig, tmp_path: Path) -> None:
    """Windows that differ by stage as well: the second stage's maps are shorter than the window."""
    config = replace(config, window_padding="hidden", image_size=(16, 24), window_frames=3)
    source, model = randomized(config), build_model(config)
    path = save_weights(source, tmp_path / "x.safetensors", "native")
    report = load_weights(model, path)
    assert_same(model, source)
    assert (report.changes, report.notices, config_of(path)) == ([], [], config)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """torchvision's model with random weights: windows of 8 x 7 x 7, two stages of two blocks."""
    module = pytest.importorskip("torchvision.models.video.swin_transformer")
    made = module.SwinTransformer3d([2, 4, 4], 8, [2, 2], [1, 2], [8, 7, 7], num_classes=5)
    return randomize_by_fan_in(made).eval()


SAME = ModelConfig(
    image_size=112,
    frames=16,
    num_classes=5,
    embed_dim=8,
    depths=(2, 2),
    num_heads=(1, 2),
    window_padding="fitted",
)


@torch.no_grad()
@pytest.mark.parametrize(
    "sides",
    [(16, 112, 112), (8, 56, 56), (10, 37, 50), (20, 20, 30)],
    ids=lambda sides: "x".join(map(str, sides)),
)
def test_logits_are_those_of_torchvision(
    sides: tuple[int, int, int], theirs: torch.nn.Module, tmp_path: Path
) -> None:
    """Maps that are padded, and maps that are shorter than windows in time, in space, and in both."""
    torch.save(theirs.state_dict(), tmp_path / "swin3d.pth")
    model = build_model(SAME).eval()
    load_weights(model, tmp_path / "swin3d.pth")
    clips = randn(1, 3, *sides)
    torch.testing.assert_close(model(clips).logits, theirs(clips), rtol=0, atol=1e-4)


@torch.no_grad()
def test_torchvision_loads_what_is_written(theirs: torch.nn.Module, tmp_path: Path) -> None:
    """Strictly, its buffers too."""
    source = randomize_by_fan_in(build_model(SAME), seed=3).eval()
    path = save_weights(source, tmp_path / "out.pth", "torchvision")
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(torch.load(path, weights_only=True))
    clips = randn(1, 3, 10, 37, 50)
    torch.testing.assert_close(source(clips).logits, theirs(clips), rtol=0, atol=1e-4)
    theirs.load_state_dict(before)


SIZES = {  # embed_dim, depths, num_heads
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def parameters_of(size: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A released model of 400 classes, and its parameters on the meta device."""
    dim, depths, heads = SIZES[size]
    config = ModelConfig(
        embed_dim=dim, depths=depths, num_heads=heads, num_classes=400, frames=32, window_padding="fitted"
    )
    return config, dict(build_on_meta(config).named_parameters())


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_of_torchvision_key_for_key(size: str) -> None:
    made = pytest.importorskip("torchvision.models.video.swin_transformer")
    with torch.device("meta"):
        expected = getattr(made, f"swin3d_{size}")().state_dict()
    config, tensors = parameters_of(size)
    names = video.export(tensors, config, {}, "torchvision")
    assert {name: list(tensor.shape) for name, tensor in names.items()} == {
        name: list(tensor.shape) for name, tensor in expected.items() if not name.endswith(INDEX)
    }
    assert video.convert(names).tensors.keys() == tensors.keys()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_logits_of_the_released_sizes(size: str, tmp_path: Path) -> None:
    """Of 16 x 112 x 112 pixels, from random weights; the file that is written is the one that was read."""
    made = pytest.importorskip("torchvision.models.video.swin_transformer")
    theirs = randomize_by_fan_in(getattr(made, f"swin3d_{size}")()).eval()
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    model = build_model(parameters_of(size)[0]).eval()
    load_weights(model, tmp_path / "in.pth")
    clips = randn(1, 3, 16, 112, 112)
    torch.testing.assert_close(model(clips).logits, theirs(clips), rtol=0, atol=1e-4)
    written = torch.load(save_weights(model, tmp_path / "out.pth", "torchvision"), weights_only=True)
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dialect", "norm"), [("official", "norm"), ("mmaction", "norm3")])
def test_names_of_released_checkpoints_key_for_key(size: str, dialect: str, norm: str) -> None:
    """Listed stage by stage: a merging after each but the last, whose norm mmaction2 numbers."""
    config, tensors = parameters_of(size)
    expected = ["cls_head.fc_cls.weight", "cls_head.fc_cls.bias"]
    layers = [f"patch_embed.{part}.{leaf}" for part in ("proj", "norm") for leaf in ("weight", "bias")]
    layers += [f"{norm}.weight", f"{norm}.bias"]
    for stage, depth in enumerate(config.depths):
        layers += [
            f"layers.{stage}.blocks.{j}.{name}" for j in range(depth) for name, _ in rows(BLOCK["swin"])
        ]
        merging = ("norm.weight", "norm.bias", "reduction.weight") if stage < 3 else ()
        layers += [f"layers.{stage}.downsample.{name}" for name in merging]
    expected += [f"backbone.{name}" for name in layers]
    names = video.export(tensors, config, {}, dialect)
    assert sorted(names) == sorted(expected)
    inside = {name.removeprefix("backbone."): tensor for name, tensor in names.items()}
    assert video.convert(inside).tensors.keys() == tensors.keys()


def test_the_index_of_the_released_window() -> None:
    """Of 8 x 7 x 7 tokens: the row of the offset (0, 0, 0) is 1267 of 2535."""
    index = slow_index((8, 7, 7))
    assert index[0, 0] == 1267
    assert index.max() == 2534
    for window in ((8, 7, 7), (16, 7, 7), (1, 4, 5), (3, 2, 4)):
        assert indexed_window(slow_index(window), 3) == window


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_tensor_too_few_or_too_many_is_refused(dialect: str, tmp_path: Path) -> None:
    model = randomized(CLIPS, seed=2)
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    tensors = released(randomized(CLIPS), dialect)
    for ending in ("patch_embed.norm.bias", "norm1.bias", "attn.qkv.weight"):
        name = next(name for name in tensors if name.endswith(ending))
        few = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(WeightsError, match="1 tensors of the model are missing"):
            load_weights(model, written(few, tmp_path / "few.pth", dialect))
    prefix = "" if dialect == "torchvision" else "backbone."
    for name in (f"{prefix}layers.0.blocks.0.attn.extra", f"{prefix}features.0.0.mlp.1.weight"):
        many = tensors | {name: torch.ones(1)}
        with pytest.raises(WeightsError, match="1 tensors are none of the model's"):
            load_weights(model, written(many, tmp_path / "many.pth", dialect))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_another_order_of_a_table_is_refused(tmp_path: Path) -> None:
    tensors = released(randomized(CLIPS), "torchvision")
    tensors["features.0.1.attn.relative_position_index"] = slow_index((2, 3, 3)).T.contiguous()
    with pytest.raises(
        WeightsError, match=r"features.0.1.attn.relative_position_index is not the index of a"
    ):
        load_weights(build_model(CLIPS), written(tensors, tmp_path / "x.pth", "torchvision"))


def test_two_dialects_in_one_file_are_refused(tmp_path: Path) -> None:
    source = randomized(CLIPS)
    tensors = released(source, "official") | released(source, "mmaction")
    with pytest.raises(WeightsError, match="by their names in two dialects"):
        load_weights(build_model(CLIPS), written(tensors, tmp_path / "x.pth"))


def test_norms_of_earlier_stages_are_named(tmp_path: Path) -> None:
    """mmaction2 has one for each of `out_indices`."""
    source, model = randomized(CLIPS), build_model(CLIPS)
    tensors = released(source, "mmaction") | {"backbone.norm0.weight": torch.ones(8)}
    report = load_weights(model, written(tensors, tmp_path / "x.pth"))
    assert_same(model, source)
    assert report.dropped["norm0.weight"] == "the norm of an earlier stage, and the model has none"


def test_wrappers_around_a_model_of_clips(tmp_path: Path) -> None:
    """`module.` of a parallel run before `backbone.` and `cls_head.`; torchvision's compiled."""
    for dialect, wrapper in (("official", "module."), ("torchvision", "_orig_mod.")):
        source, model = randomized(CLIPS), build_model(CLIPS)
        tensors = {wrapper + name: tensor for name, tensor in released(source, dialect).items()}
        load_weights(model, written(tensors, tmp_path / f"{dialect}.pth", dialect))
        assert_same(model, source)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_classes(dialect: str, tmp_path: Path) -> None:
    """Five in the file: refused, replaced, picked, or left out with a backbone."""
    source = randomized(CLIPS)
    path = written(released(source, dialect), tmp_path / "x.pth", dialect)
    config = replace(CLIPS, num_classes=2)
    with pytest.raises(WeightsError, match=r"the weights have 5 classes, model.num_classes is 2"):
        load_weights(build_model(config), path)
    model = build_model(config)
    own = model.head.weight.detach().clone()
    report = load_weights(model, path, head="replace")
    assert torch.equal(model.head.weight, own)
    assert report.initial == {"classifier": 2}
    load_weights(model, path, head=ClassMap(indices=(4, 1)))
    assert torch.equal(model.head.weight, source.head.weight[[4, 1]])
    report = load_weights(build_backbone(CLIPS), path)
    assert [why for why in report.dropped.values() if "classifier" in why] == [
        "the classifier, and the model has none"
    ] * 2


@pytest.mark.parametrize("has_index", [True, False], ids=["with index", "without"])
@pytest.mark.parametrize("window", [(4, 3, 3), (2, 5, 5), (3, 2, 2)], ids=str)
def test_tables_of_another_window(window: tuple[int, int, int], has_index: bool, tmp_path: Path) -> None:
    """By the matrix of cubic convolution along each axis; without an index where the rows tell the window."""
    source = randomized(CLIPS)
    tensors = released(source, "torchvision")
    if not has_index:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(INDEX)}
    path = written(tensors, tmp_path / "x.pth", "torchvision")
    model = build_model(replace(CLIPS, window_frames=window[0], window_size=window[1]))
    if not has_index and window == (3, 2, 2):  # 75 rows: neither a depth nor a square says how
        with pytest.raises(WeightsError, match="3 tensors have another shape"):
            load_weights(model, path)
        return
    report = load_weights(model, path)
    how = "bicubic" if window[0] == 2 else "cubic in time and over the image"
    resized = "x".join(map(str, window))
    assert report.changes == [f"position bias: window 2x3x3 resized to {resized}, {how} (3 tables)"]
    along = [cubic(2 * old - 1, 2 * new - 1) for old, new in zip((2, 3, 3), window, strict=True)]
    for stage in range(2):
        old, new = (
            m.layers[stage].blocks[0].attention.position_bias.table().detach() for m in (source, model)
        )
        expected = torch.einsum("ai,bj,ck,ijkn->abcn", *along, old.unflatten(0, (3, 5, 5)))
        torch.testing.assert_close(new, expected.flatten(0, 2))


def test_clips_of_other_frames(tmp_path: Path) -> None:
    """Weights of clips for a model of images, and patches of one frame for patches of two."""
    path = written(released(randomized(CLIPS), "official"), tmp_path / "x.pth")
    with pytest.raises(
        WeightsError, match=r"of a model of clips \(patches of 2 frames\), and this model is of"
    ):
        load_weights(build_model(SWIN), path)
    with pytest.raises(WeightsError, match=r"set model.patch_frames=2 \(got 1\)"):
        load_weights(build_model(replace(CLIPS, patch_frames=1)), path)


def test_another_rule_of_padding_is_named(tmp_path: Path) -> None:
    """Where maps are padded, hiding it differs; where none is longer than its window, shifting it does."""
    path = written(released(randomized(CLIPS), "official"), tmp_path / "x.pth")
    hidden = build_model(replace(CLIPS, window_padding="hidden"))
    assert not any("window padding" in notice for notice in load_weights(hidden, path).notices)
    hidden = build_model(replace(CLIPS, window_padding="hidden", frames=6))
    notice = (
        "model.window_padding=fitted; here it is hidden, which gives other results: stage 0 has a map of 3 x"
    )
    assert any(notice in line for line in load_weights(hidden, path).notices)
    visible = build_model(replace(CLIPS, window_padding="visible"))
    notice = (
        "here it is visible, which gives other results: stage 1 has a map of 4 x 3 x 3 and windows of 2x3x3"
    )
    assert any(notice in line for line in load_weights(visible, path).notices)


REFUSED: list[tuple[ModelConfig, str, str]] = [
    (
        CLIPS,
        "hf",
        r"--to hf has no models of clips \(model.frames is 8\); --to official, mmaction, torchvision",
    ),
    (CLIPS, "timm", "--to timm has no models of clips"),
    (CLIPS, "mmseg", "--to mmseg is for models of segmentation"),
    (CLIPS, "mmdet", "--to mmdet is for models of detection"),
    (SWIN, "mmaction", "--to mmaction is for models of clips, and model.frames is 0"),
    (SWIN, "torchvision", "--to torchvision is for models of clips"),
    (replace(CLIPS, window_padding="hidden"), "official", "Video-Swin-Transformer would give other results"),
    (replace(CLIPS, **V2), "mmaction", "mmaction2 could not run this model: swinv2"),
    (replace(CLIPS, moe=small_moe()), "torchvision", "could not run this model: one with .* 4 experts"),
    (replace(CLIPS, qkv_bias=False), "torchvision", "has model.qkv_bias=True alone, and it is False"),
    (replace(CLIPS, in_chans=1), "torchvision", "has model.in_chans=3 alone, and it is 1"),
]


@pytest.mark.parametrize(("config", "format", "message"), REFUSED)
def test_formats_that_cannot_hold_a_model_are_refused(
    config: ModelConfig, format: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=re.compile(message)):
        save_weights(build_model(config), tmp_path / "out.pth", format)
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_of_clips_is_written_alone(tmp_path: Path) -> None:
    source: Any = build_backbone(CLIPS, seed=3)
    path = save_weights(source, tmp_path / "out.pth", "mmaction")
    names = torch.load(path, weights_only=True)["state_dict"]
    assert all(name.startswith("backbone.") for name in names)
    model: SwinTransformer = build_model(CLIPS)
    report = load_weights(model, path, head="replace")
    assert report.initial == {"classifier": 2}
    for name, parameter in source.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
