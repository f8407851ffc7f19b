"""UPerNet to the formats of others and back: names mapped by hand, and the logits of transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from swin_moe import ModelConfig, WeightsError, build_backbone, load_weights, save_weights
from swin_moe.heads.upernet import Segmenter, build_segmenter
from swin_moe.heads.upernet_config import UPerNetConfig
from swin_moe.weights.input_spec import InputSpec
from swin_moe.weights.native import config_of
from tests.models import V2, randn, randomize_by_fan_in, small_moe
from tests.swin_moe.weights.dense_files import DENSE, dense_model, released, state, statistics

CONFIG = replace(DENSE, depths=(2, 2, 1, 1), num_heads=(1, 1, 2, 2))
HEAD = UPerNetConfig(channels=8, auxiliary_channels=4, norm_group_images=2)
FORMATS = ["native", "official", "mmseg", "hf"]
DIALECTS = {"official": "official", "mmseg": "zoo"}


def segmenter(seed: int, config: ModelConfig = CONFIG, head: UPerNetConfig = HEAD) -> Segmenter:
    """With every tensor random, running statistics too."""
    model = randomize_by_fan_in(build_segmenter(config, head), seed=seed)
    for i, buffer in enumerate(statistics(model).values()):
        buffer.copy_(randn(*buffer.shape, seed=seed + i).abs() + 0.5)
    return model.eval()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    first, second = state(model), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("form", FORMATS)
def test_there_and_back(form: str, tmp_path: Path) -> None:
    """Bit by bit; what a format has besides are counters and index buffers."""
    source, model = segmenter(1), segmenter(2)
    report = load_weights(model, save_weights(source, tmp_path / "out", form))
    assert_same(model, source)
    assert report.initial == {}
    assert set(report.dropped.values()) <= {"a counter of training steps", "a buffer, computed anew"}
    assert (config_of(tmp_path / "out") == CONFIG) == (form == "native")


@pytest.mark.parametrize("form", DIALECTS)
def test_released_names_and_values(form: str, tmp_path: Path) -> None:
    source = segmenter(1)
    inputs = InputSpec(mean=(0.5,) * 3, std=(0.5,) * 3, eval_crop=1.0, classes=("a", "b", "c", "d", "e"))
    path = save_weights(source, tmp_path / "upernet.pth", form, inputs)
    content = torch.load(path, weights_only=True)
    assert content["meta"] == {"CLASSES": inputs.classes}
    expected: dict[str, Tensor] = released(source, DIALECTS[form])
    assert content["state_dict"].keys() == expected.keys()
    for name, tensor in content["state_dict"].items():
        constant = name.endswith(("relative_position_index", "num_batches_tracked"))
        assert constant or torch.equal(tensor, expected[name]), name


@torch.no_grad()
def test_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    """At 37 x 50, where all maps are padded and merging rounds up; nothing is missing, nothing too many."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    source = segmenter(1)
    save_weights(source, tmp_path / "upernet", "hf")
    theirs, info = transformers.UperNetForSemanticSegmentation.from_pretrained(
        tmp_path / "upernet", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all("swin.layernorm" in name for name in info["missing_keys"]), "a norm that UPerNet does not use"
    x = randn(2, 3, 37, 50)
    ours = nn.functional.interpolate(source(x).logits, (37, 50), mode="bilinear", align_corners=False)
    expected = theirs.eval()(x).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "back")
    again = segmenter(2)
    report = load_weights(again, tmp_path / "back")
    assert_same(again, source)
    last = [
        why for name, why in report.dropped.items() if name.endswith(("layernorm.weight", "layernorm.bias"))
    ]
    assert last == ["the norm of the last map, and the model has none"] * 2


def test_a_backbone_for_another_task(tmp_path: Path) -> None:
    """The backbone of a segmentation model of ours, alone and into one with other heads."""
    source = segmenter(1)
    path = save_weights(source, tmp_path / "model.safetensors", "native")
    backbone = build_backbone(CONFIG, norm=False)
    report = load_weights(backbone, path)
    assert all(torch.equal(p, source.encoder.get_parameter(n)) for n, p in backbone.named_parameters())
    assert "the decode head, and the model has none" in report.dropped.values()
    other = segmenter(2, head=replace(HEAD, channels=4))
    report = load_weights(other, path, parts=["backbone"])
    assert report.changes[0].startswith("taken from the weights: backbone ")
    with pytest.raises(WeightsError, match="tensors have another shape .*decode_head"):
        load_weights(other, path)


HIDDEN = replace(CONFIG, window_padding="hidden")
REFUSED = {
    "timm": (CONFIG, HEAD, "timm", "--to timm has no models of segmentation; --to safetensors holds any"),
    "padding": (HIDDEN, HEAD, "official", "attention sees the zeros that pad a map, .* is hidden; --to safe"),
    "v2": (
        replace(CONFIG, **V2),
        HEAD,
        "hf",
        "is for UPerNet on swin; this backbone is swinv2, and .* do not normalize the maps of the stages",
    ),
    "moe": (
        replace(CONFIG, moe=small_moe(blocks=((1,), (), (), ()))),
        HEAD,
        "mmseg",
        "this backbone is one with dot attention, table bias, pre norm, 4 experts, and",
    ),
    "stage": (
        CONFIG,
        replace(HEAD, auxiliary_stage=1),
        "hf",
        "reads stage 2 by its auxiliary head, and .* 1;",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_others_could_not_run_is_refused(name: str, tmp_path: Path) -> None:
    config, head, form, message = REFUSED[name]
    with pytest.raises(WeightsError, match=message):
        save_weights(build_segmenter(config, head), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_formats_of_other_models(tmp_path: Path) -> None:
    """A backbone has no place in mmseg's format, nor a model that is not UPerNet in any but ours."""
    with pytest.raises(WeightsError, match="--to mmseg is for models of segmentation"):
        save_weights(build_backbone(CONFIG), tmp_path / "out", "mmseg")
    with pytest.raises(
        WeightsError, match="--to official is for UPerNet and Mask R-CNN .*, and the model is a Den"
    ):
        save_weights(dense_model(), tmp_path / "out", "official")
    source, model = dense_model(seed=1), dense_model(seed=2)
    load_weights(model, save_weights(source, tmp_path / "ours", "safetensors"))
    assert_same(model, source)
