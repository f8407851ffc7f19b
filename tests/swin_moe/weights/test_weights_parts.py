"""Weights of every format into a backbone, a classifier, or both: each tensor is used or named."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from swin_moe import (
    Backbone,
    ClassMap,
    ModelConfig,
    WeightsError,
    build_backbone,
    build_model,
    load_weights,
    save_weights,
)
from swin_moe.heads.simmim import SimMIMConfig, build_simmim
from swin_moe.weights.load import read
from tests.models import randomize
from tests.swin_moe.weights.official_files import SWIN, SWIN_MOE, SWIN_V2, official, randomized

HEAD = {"head.weight", "head.bias"}
CASES = [
    *((SWIN, format) for format in ("native", "official", "timm", "hf")),
    (SWIN_V2, "official"),
    (SWIN_MOE, "native"),
    (SWIN_MOE, "official"),
]
NAMES = [
    f"{kind}-{format}" for kind, (_, format) in zip(["swin"] * 4 + ["v2"] + ["moe"] * 2, CASES, strict=True)
]


def state(model: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: Backbone, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are no longer what they were."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(("config", "format"), CASES, ids=NAMES)
def test_a_backbone_takes_all_but_the_classifier(config: ModelConfig, format: str, tmp_path: Path) -> None:
    """Of each format; the tensors that were loaded and those that the report names are all of the file."""
    source = randomized(config)
    path = save_weights(source, tmp_path / "weights.pth", format)
    model = build_backbone(config)
    report = load_weights(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    classifier = [name for name, why in report.dropped.items() if why.startswith("the classifier")]
    assert len(classifier) == 2
    assert report.changes == []
    assert "not used, the classifier, and the model has none: " in str(report)
    if format == "native":
        assert report.loaded + len(report.dropped) == len(read(path).tensors)


@pytest.mark.parametrize(
    "parts", [["backbone"], ["head"], ["backbone", "head"], ["head", "backbone"]], ids=str
)
def test_named_parts_are_written_and_nothing_else(parts: Sequence, tmp_path: Path) -> None:
    source = randomized(SWIN_MOE)
    path = save_weights(source, tmp_path / "weights.safetensors", "native")
    model = randomize(build_model(SWIN_MOE, seed=5), seed=7)
    before = state(model)
    report = load_weights(model, path, parts=parts)
    everything = set(before)
    expected = (HEAD if "head" in parts else set()) | (everything - HEAD if "backbone" in parts else set())
    assert changed(model, before) == expected
    assert all(torch.equal(model.state_dict()[name], source.state_dict()[name]) for name in expected)
    assert report.loaded + len(report.dropped) == len(read(path).tensors)
    left_out = set(report.dropped.values())
    assert left_out == {f"parts leaves out the {part}" for part in ("backbone", "head") if part not in parts}


def test_a_backbone_of_another_classifier_and_window(tmp_path: Path) -> None:
    """9 classes in the file and 5 in the model; the position bias is resized as ever."""
    path = save_weights(randomized(SWIN, num_classes=9), tmp_path / "weights.pth", "official")
    larger = replace(SWIN, image_size=32, window_size=7)
    report = load_weights(build_model(larger), path, parts=["backbone"])
    assert any("window 3 resized to 7" in change for change in report.changes)
    with pytest.raises(WeightsError, match="the weights have 9 classes"):
        load_weights(build_model(larger), path, parts=["head"])
    headless = build_backbone(larger)
    assert load_weights(headless, path).changes == report.changes


def test_the_head_alone_does_not_depend_on_the_backbone(tmp_path: Path) -> None:
    """The file's backbone has other depths and windows; classes are picked by a map."""
    source = randomized(SWIN)
    path = save_weights(source, tmp_path / "weights.safetensors", "native")
    model = build_model(replace(SWIN_V2, num_classes=2, depths=(1, 1)))
    report = load_weights(model, path, parts=["head"], head=ClassMap(indices=(4, 0)))
    assert torch.equal(model.head.weight, source.head.weight[[4, 0]])
    assert (report.loaded, report.changes) == (2, ["classifier: 2 of 5 classes, by class map"])


def test_a_dense_backbone_has_no_last_norm(tmp_path: Path) -> None:
    """Of a classifier, and of a detector with a norm a stage: each norm of the file is named."""
    source, model = randomized(SWIN), build_backbone(SWIN, norm=False)
    tensors = official(source, "swin")
    torch.save(tensors, tmp_path / "classifier.pth")
    report = load_weights(model, tmp_path / "classifier.pth")
    assert report.dropped["norm.weight"] == "the norm of the last map, and the model has none"
    detector = {name: tensor for name, tensor in tensors.items() if not name.startswith(("norm.", "head."))}
    detector |= {f"norm{stage}.weight": torch.ones(8 * 2**stage) for stage in range(2)}
    wrapped = {f"backbone.{name}": tensor for name, tensor in detector.items()}
    torch.save({"state_dict": wrapped | {"neck.conv.weight": torch.ones(1)}}, tmp_path / "detector.pth")
    again = build_backbone(SWIN, norm=False, seed=3)
    report = load_weights(again, tmp_path / "detector.pth")
    assert {"norm0.weight", "norm1.weight", "neck.conv.weight"} <= set(report.dropped)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_the_encoder_of_simmim_takes_a_classifier(tmp_path: Path) -> None:
    source = randomized(SWIN)
    path = save_weights(source, tmp_path / "weights.safetensors", "native")
    simmim = build_simmim(SWIN, SimMIMConfig(mask_patch_size=4))
    report = load_weights(simmim.encoder, path)
    assert set(report.dropped) == HEAD
    assert torch.equal(simmim.encoder.norm.bias, source.norm.bias)


def test_a_backbone_has_the_initial_weights_of_the_classifier() -> None:
    model, backbone = build_model(SWIN_MOE, seed=3), build_backbone(SWIN_MOE, seed=3)
    assert set(model.state_dict()) - set(backbone.state_dict()) == HEAD
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert build_backbone("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)).channels == (96, 192, 384, 768)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": []}, "parts ([]) must be some of backbone, head"),
        ({"parts": ["neck"]}, "parts (['neck']) must be some of backbone, head"),
        ({"parts": ["head"]}, "parts (['head']): the model has no classifier; load its backbone"),
        ({"head": ClassMap(indices=(1,))}, "class map picks classes, and the model has no classifier"),
        (
            {"parts": ["backbone"], "head": ClassMap(indices=(1,))},
            "class map picks classes, and parts (['backbone']) has no head",
        ),
        (
            {"parts": ["head"], "upcycle_noise": 0.0},
            "upcycle_noise is of the backbone, and parts is ['head']",
        ),
    ],
)
def test_errors(options: dict, message: str, tmp_path: Path) -> None:
    path = save_weights(build_model(SWIN), tmp_path / "weights.safetensors", "native")
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(build_backbone(SWIN), path, **options)
