"""Released segmentation weights of three dialects into a dense model, and its parts from other weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ClassMap, WeightsError, build_backbone, build_model, load_weights, save_weights
from swin_moe.backbone.patch import PatchMerging
from swin_moe.heads.simmim import SimMIMConfig, build_simmim
from swin_moe.weights import mmseg
from swin_moe.weights.load import LoadReport, read
from tests.models import randn, randomize, randomize_by_fan_in
from tests.swin_moe.weights.dense_files import DENSE, DenseModel, dense_model, released, row_by_row, state
from tests.swin_moe.weights.official_files import randomized

DIALECTS = {"official": "official", "zoo": "OpenMMLab", "hugging_face": "Hugging Face Swin"}
# 4 of the embedding, 13 of each of 4 blocks, 3 of the merging; 2 norms; 2 x (conv, 2 + 2 of bn) + 2 a head
ALL = "backbone 59 of 59, stage norms 4 of 4, decode head 12 of 12, auxiliary head 12 of 12 tensors"


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    """As the training code saves them: `state_dict` beside what else there is."""
    torch.save({"meta": {"epoch": 1}, "state_dict": tensors, "optimizer": {}}, path)
    return path


def loaded(path: Path, model: nn.Module, **options: Any) -> LoadReport:
    """Load, and hold that each tensor of the file was used or named."""
    before = state(model)
    report = load_weights(model, path, **options)
    changed = [name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) == report.loaded, "random values that differ"
    return report


def assert_same(model: nn.Module, other: nn.Module) -> None:
    first, second = state(model), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_tensor_of_a_released_file(dialect: str, tmp_path: Path) -> None:
    """Into a model whose own values are random; what is not used are counters and index buffers."""
    source, model = dense_model(seed=1), dense_model(seed=2)
    tensors = released(source, dialect)
    report = loaded(written(tensors, tmp_path / "upernet.pth"), model)
    assert_same(model, source)
    assert report.format == DIALECTS[dialect]
    assert report.changes == [f"taken from the weights: {ALL}"]
    assert report.notices == ["the prefix backbone. of the names was removed"]
    assert report.initial == {}
    reasons = {name.rpartition(".")[2]: reason for name, reason in report.dropped.items()}
    assert reasons == {
        "num_batches_tracked": "a counter of training steps",
        "relative_position_index": "a buffer, computed anew",
    }
    parts = 3 if dialect == "hugging_face" else 1  # queries, keys and values of 4 blocks, weight and bias
    assert report.loaded == len(tensors) - len(report.dropped) - 8 * (parts - 1) == 87


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_tensor_too_few_or_too_many_is_refused(dialect: str, tmp_path: Path) -> None:
    """Of each part; nothing is written."""
    tensors = released(dense_model(seed=1), dialect)
    model = dense_model(seed=2)
    before = state(model)
    for ending in ("patch_embed.norm.bias", "norm1.bias", "convs.1.conv.weight", "embeddings.norm.bias"):
        for name in [name for name in tensors if name.endswith(ending)][:1]:
            path = written({k: v for k, v in tensors.items() if k != name}, tmp_path / "few.pth")
            with pytest.raises(WeightsError, match="1 tensors of the model are missing"):
                load_weights(model, path)
    for name in ("backbone.layers.0.blocks.0.attn.extra.weight", "decode_head.extra.weight"):
        path = written(tensors | {name: torch.ones(1)}, tmp_path / "many.pth")
        with pytest.raises(WeightsError, match="1 tensors are none of the model's"):
            load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_the_zoo_merges_what_we_merge() -> None:
    """By torch.nn.Unfold, as OpenMMLab's PatchMerging does; maps of odd sides, which both pad with zeros."""
    channels = 3
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)
    randomize(norm), randomize(reduction)
    x = randn(2, 5, 4, channels)
    image = nn.functional.pad(x.permute(0, 3, 1, 2), (0, 0, 0, 1))
    columns = nn.functional.unfold(image, kernel_size=2, stride=2).transpose(1, 2)  # (B, L, 4 * C)
    expected = reduction(norm(columns)).view(2, 3, 2, 2 * channels)
    ours = PatchMerging(channels)
    for name in ("norm.weight", "norm.bias", "reduction.weight"):
        theirs = {"norm": norm, "reduction": reduction}[name.split(".")[0]].get_parameter(name.split(".")[1])
        converted = mmseg.to_official_order(f"layers.0.downsample.{name}", theirs.detach())
        assert torch.equal(mmseg.from_official_order(f"layers.0.downsample.{name}", converted), theirs)
        assert torch.equal(row_by_row(converted), theirs)
        assert not torch.equal(converted, theirs)
        ours.load_state_dict({name: converted}, strict=False)
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("how", ["folder", "in memory"])
def test_maps_are_those_of_transformers_upernet(how: str, tmp_path: Path) -> None:
    """Their own model with random weights, saved by them; padded maps, and an image that divides nothing."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    config = replace(DENSE, depths=(2, 2, 1, 1), num_heads=(1, 1, 2, 2))
    backbone = transformers.SwinConfig(
        image_size=40,
        embed_dim=8,
        depths=[2, 2, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    options = {"hidden_size": 4, "auxiliary_channels": 4, "auxiliary_in_channels": 32, "num_labels": 5}
    theirs = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, **options)
    ).eval()
    randomize_by_fan_in(theirs)
    path = tmp_path / "upernet"
    if how == "folder":
        theirs.save_pretrained(path)
    else:
        torch.save(theirs.state_dict(), path)
    model = dense_model(config, seed=3)
    report = load_weights(model, path, parts=["backbone"])
    assert report.initial == {"stage norms": 8, "decode head": 12, "auxiliary head": 12}
    norms = theirs.backbone.hidden_states_norms
    for i, norm in enumerate(model.stage_norms.values()):
        norm.load_state_dict(norms[f"stage{i + 1}"].state_dict())
    x = randn(2, 3, 37, 50)
    for got, wanted in zip(model(x).maps, theirs.backbone(x).feature_maps, strict=True):
        torch.testing.assert_close(got.permute(0, 3, 1, 2), wanted, rtol=0, atol=1e-4)


SOURCES = ["ours", "simmim", "official"]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_backbone_of_other_weights(kind: str, tmp_path: Path) -> None:
    """Classifiers and SimMIM; the heads keep their values, and a line says so."""
    path = tmp_path / "weights.pth"
    hidden = replace(DENSE, window_padding="hidden")
    if kind == "simmim":
        source: Any = randomize(build_simmim(hidden, SimMIMConfig(mask_patch_size=8), seed=1), seed=4)
        encoder = source.encoder
        torch.save(source.state_dict(), path)
    else:
        source = encoder = randomized(hidden)
        save_weights(source, path, "native" if kind == "ours" else "official")
    model = dense_model(seed=2)
    before = state(model)
    report = loaded(path, model)
    assert report.changes == [
        "taken from the weights: backbone 59 of 59, stage norms 0 of 4, decode head 0 of 12, auxiliary head "
        "0 of 12 tensors; the other 28 tensors keep their initial values"
    ]
    assert report.initial == {"stage norms": 4, "decode head": 12, "auxiliary head": 12}
    assert report.loaded == 59
    for name, tensor in state(model).items():
        own = encoder.get_parameter(name.removeprefix("encoder.")) if "encoder." in name else before[name]
        assert torch.equal(tensor, own), name
    content = read(path)
    used = [*report.dropped, *(n for n in content.tensors if n not in report.dropped)]
    assert len(used) == report.loaded + len(report.dropped)
    assert report.dropped.keys() >= ({"norm.weight"} if kind != "simmim" else {"mask_token"} - {"mask_token"})


def test_a_dense_model_of_ours_comes_back(tmp_path: Path) -> None:
    source, model = dense_model(seed=1), dense_model(seed=2)
    torch.save(source.state_dict(), tmp_path / "ours.pth")
    report = loaded(tmp_path / "ours.pth", model)
    assert report.format == "swin-moe"
    assert report.changes == [f"taken from the weights: {ALL}"]
    assert_same(model, source)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_classifier_takes_the_backbone(dialect: str, tmp_path: Path) -> None:
    """And names the heads; with hidden padding it says that results differ, where they do."""
    source = dense_model(seed=1)
    path = written(released(source, dialect), tmp_path / "upernet.pth")
    model = build_backbone(replace(DENSE, window_padding="hidden"), norm=False)
    report = loaded(path, randomize(model, seed=5))
    heads = [why for why in report.dropped.values() if why.endswith("and the model has none")]
    assert sorted({why: heads.count(why) for why in heads}.items()) == [
        ("the auxiliary head, and the model has none", 12),
        ("the decode head, and the model has none", 12),
        ("the stage norms, and the model has none", 4),
    ]
    assert [notice for notice in report.notices if "window padding" in notice] == [
        "window padding: these weights are of a model with model.window_padding=visible; here it is hidden, "
        "which gives other results: stage 0 has a map of 10 x 10 and windows of 3"
    ]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, source.encoder.get_parameter(name))
    whole = replace(DENSE, window_padding="hidden", image_size=48)  # maps of 12 and 6 tokens
    report = load_weights(build_backbone(whole, norm=False), path)
    assert not any("window padding" in notice for notice in report.notices)


def test_other_classes(tmp_path: Path) -> None:
    """Five in the weights: refused, replaced in both heads, or picked in both."""
    source = dense_model(seed=1)
    path = written(released(source, "official"), tmp_path / "upernet.pth")
    config = replace(DENSE, num_classes=2)
    with pytest.raises(
        WeightsError, match=r"decode head of the weights has 5 classes, model.num_classes is 2"
    ):
        load_weights(dense_model(config), path)
    model = dense_model(config, seed=2)
    own = model.decode_head.conv_seg.weight.detach().clone()
    report = load_weights(model, path, head="replace")
    assert torch.equal(model.decode_head.conv_seg.weight, own)
    assert report.initial == {"decode head": 2, "auxiliary head": 2}
    assert report.changes[1:] == [
        f"classifier of the {part} head: the model's own of 2 classes stays, that of 5 classes is not used"
        for part in ("decode", "auxiliary")
    ]
    report = load_weights(model, path, head=ClassMap(indices=(4, 0)))
    for head in ("decode_head", "auxiliary_head"):
        for leaf in ("weight", "bias"):
            got, theirs = (m.get_parameter(f"{head}.conv_seg.{leaf}") for m in (model, source))
            assert torch.equal(got, theirs[[4, 0]])
    save_weights(randomized(replace(DENSE, window_padding="hidden")), tmp_path / "plain", "native")
    with pytest.raises(WeightsError, match="class map picks classes, and the weights have no classifier"):
        load_weights(model, tmp_path / "plain", head=ClassMap(indices=(4, 0)))


def test_heads_that_a_model_lacks_are_named(tmp_path: Path) -> None:
    """A model without auxiliary head, and with a norm of its last stage alone."""
    path = written(released(dense_model(seed=1), "official"), tmp_path / "upernet.pth")
    model = dense_model(seed=2)
    del model.auxiliary_head
    del model.stage_norms["0"]
    report = loaded(path, model)
    reasons = [why for why in report.dropped.values() if "head" in why or "norm" in why]
    assert sorted(set(reasons)) == [
        "the auxiliary head, and the model has none",
        "the norm of stage 0, whose map the model does not read",
    ]
    assert len(reasons) == 14


def test_parts_of_a_dense_model(tmp_path: Path) -> None:
    source = dense_model(seed=1)
    path = written(released(source, "zoo"), tmp_path / "upernet.pth")
    for parts, count in ((["backbone"], 59), (["head"], 28)):
        model = dense_model(seed=2)
        report = loaded(path, model, parts=parts)
        assert report.loaded == count
        assert any(why.startswith("parts leaves out") for why in report.dropped.values())
    with pytest.raises(WeightsError, match="a Linear has no backbone"):
        load_weights(nn.Linear(1, 1), path)


def test_the_window_of_another_model(tmp_path: Path) -> None:
    """Tables of windows of 3 into windows of 5, in every stage."""
    path = written(released(dense_model(seed=1), "zoo"), tmp_path / "upernet.pth")
    model: DenseModel = dense_model(replace(DENSE, window_size=5), seed=2)
    report = load_weights(model, path)
    assert "position bias: window 3 resized to 5, bicubic (4 tables)" in report.changes


def test_a_released_file_without_its_backbone_is_refused(tmp_path: Path) -> None:
    tensors = {k: v for k, v in released(dense_model(seed=1), "official").items() if "backbone" not in k}
    path = written(tensors, tmp_path / "heads.pth")
    with pytest.raises(WeightsError, match="no weights of a Swin that is known here"):
        load_weights(build_model(DENSE), path)
