"""Prefixes of trainers' wrappers, what stands beside a backbone, and moving averages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from swin_moe import WeightsError, build_model, load_weights
from swin_moe.weights.names import without_prefixes
from tests.swin_moe.weights.official_files import SWIN, assert_same, official, randomized, state

PREFIXES = (
    "module.",
    "model.",
    "backbone.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.backbone.",
    "module.model.backbone.",
    "net.",
    "anything.else.",
)


def weights(seed: int = 1) -> dict[str, Tensor]:
    return official(randomized(SWIN, seed), "swin")


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module", "model_state_dict"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_removed_and_said(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    content = under(prefix, weights())
    path = saved(tmp_path / "x.pth", {wrapper: content, "epoch": 1} if wrapper else content)
    model = build_model(SWIN)
    report = load_weights(model, path)
    assert_same(model, randomized(SWIN))
    rest = prefix.replace("_orig_mod.", "")
    assert report.notices == ([f"the prefix {rest} of the names was removed"] if rest else [])


def test_a_prefix_in_a_safetensors_file(tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in under("model.", weights()).items()}, tmp_path / "x")
    model = build_model(SWIN)
    assert "the prefix model. of the names was removed" in str(load_weights(model, tmp_path / "x"))
    assert_same(model, randomized(SWIN))


def test_parts_that_were_compiled_one_by_one(tmp_path: Path) -> None:
    tensors = {
        name.replace(".blocks.0.", ".blocks.0._orig_mod."): tensor for name, tensor in weights().items()
    }
    model = build_model(SWIN)
    load_weights(model, saved(tmp_path / "x.pth", tensors))
    assert_same(model, randomized(SWIN))


def test_what_stands_beside_a_backbone_is_left_out_by_name(tmp_path: Path) -> None:
    backbone = {name: tensor for name, tensor in weights().items() if not name.startswith("head.")}
    others = {"neck.0.weight": torch.zeros(2), "roi_head.fc.bias": torch.zeros(3)}
    path = saved(tmp_path / "x.pth", {"state_dict": under("backbone.", backbone) | others})
    with pytest.raises(WeightsError, match=r"no classifier.*head=replace"):
        load_weights(build_model(SWIN), path)
    model = build_model(SWIN)
    report = load_weights(model, path, head="replace")
    assert torch.equal(model.norm.weight, randomized(SWIN).norm.weight)
    assert [report.dropped[name] for name in others] == [
        "the feature pyramid, and the model has none",
        "outside of backbone.*",
    ]


@pytest.mark.parametrize("classifier", ["head.", "head.fc."])
def test_a_classifier_beside_a_backbone_stays(classifier: str, tmp_path: Path) -> None:
    tensors = {
        name.replace("head.", classifier) if name.startswith("head.") else f"backbone.{name}": tensor
        for name, tensor in weights().items()
    }
    model = build_model(SWIN)
    load_weights(model, saved(tmp_path / "x.pth", tensors))
    assert_same(model, randomized(SWIN))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model._orig_mod."])
def test_the_encoder_of_simmim_keeps_its_meaning(prefix: str, tmp_path: Path) -> None:
    encoder = {f"encoder.{name}": t for name, t in weights().items() if not name.startswith("head.")}
    path = saved(tmp_path / "x.pth", {"model": under(prefix, encoder | {"decoder.0.bias": torch.zeros(3)})})
    report = load_weights(build_model(SWIN), path, head="replace")
    assert report.format == "SimMIM"
    assert report.dropped["decoder.0.bias"] == "the decoder of the pre-training"


def test_several_swins_are_refused(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "x.pth", under("student.backbone.", weights()) | under("teacher.backbone.", weights(2))
    )
    with pytest.raises(
        WeightsError, match=r"several Swins, under student.backbone., teacher.backbone.: save the"
    ):
        load_weights(build_model(SWIN), path)


def test_names_that_become_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="some tensors have one name without _orig_mod."):
        without_prefixes({"a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)})


# Moving averages: seed 1 is the model, seed 2 its average.

PAIRS = [
    ("model", "model_ema"),
    ("state_dict", "state_dict_ema"),
    ("model", "ema"),
    ("module", "module_ema"),
    ("model_state_dict", "ema_state_dict"),
]


@pytest.mark.parametrize(("model", "average"), PAIRS)
def test_of_a_model_and_its_average_it_is_said_which_was_taken(
    model: str, average: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.pth", {average: under("module.", weights(2)), model: weights(1)})
    first, second = build_model(SWIN), build_model(SWIN)
    said = f"the file holds {model} and {average}: "
    taken = f"{said}{model} was taken; for the moving average: convert --ema"
    assert taken in load_weights(first, path).notices
    assert f"{said}{average} was taken" in load_weights(second, path, ema=True).notices
    assert_same(first, randomized(SWIN, 1))
    assert_same(second, randomized(SWIN, 2))


def test_an_average_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"state_dict_ema": weights(2), "epoch": 3})
    for ema in (False, True):
        model = build_model(SWIN)
        report = load_weights(model, path, ema=ema)
        assert report.notices == [
            "the weights are the moving average state_dict_ema: the file holds no others"
        ]
        assert_same(model, randomized(SWIN, 2))


@pytest.mark.parametrize(("plain", "average"), [("model.", "model_ema."), ("", "ema.")])
def test_both_in_one_state_dict(plain: str, average: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", under(plain, weights(1)) | under(average, weights(2)))
    for ema, seed in ((False, 1), (True, 2)):
        model = build_model(SWIN)
        report = load_weights(model, path, ema=ema)
        assert_same(model, randomized(SWIN, seed))
        other = (average if seed == 1 else plain) + "norm.weight"
        assert other in report.dropped


def test_no_average(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": weights()})
    model = build_model(SWIN)
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    with pytest.raises(WeightsError, match=r"x.pth: it holds no moving average of the weights"):
        load_weights(model, path, ema=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())


def test_a_configuration_named_model_is_no_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": {"name": "swin"}, "state_dict": weights()})
    model = build_model(SWIN)
    load_weights(model, path)
    assert_same(model, randomized(SWIN))
