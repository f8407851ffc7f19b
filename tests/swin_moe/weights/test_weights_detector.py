"""Detectors: released files of both dialects in and out, their classes, and backbones of other weights.

No released file is at hand: the files are of random weights under the released names, mapped by hand in
dense_files.py. Names of heads are ours.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swin_moe import ClassMap, WeightsError, build_backbone, load_weights, save_weights
from swin_moe.config import ModelConfig
from swin_moe.detection.config import DetectorConfig, DetectorKind
from swin_moe.detection.detector import Detector, build_detector
from swin_moe.heads.simmim import SimMIMConfig, build_simmim
from swin_moe.heads.upernet import build_segmenter
from swin_moe.heads.upernet_config import UPerNetConfig
from swin_moe.weights.input_spec import InputSpec
from tests.models import V2, randn, randomize, small_moe
from tests.swin_moe.weights.dense_files import DENSE, released, state, statistics
from tests.swin_moe.weights.official_files import randomized

SMALL: dict[str, Any] = {"channels": 4, "head_channels": 6, "mask_channels": 4, "norm_group_images": 1}
KINDS: tuple[DetectorKind, ...] = ("mask_rcnn", "cascade_mask_rcnn")
DIALECTS = {"official": "official", "zoo": "OpenMMLab"}
# of a box head 2 layers and 2 outputs, weight and bias; in a cascade 4 x (conv, 4 of bn), 1 layer, 2 outputs
PARTS = {
    "mask_rcnn": "box head 8 of 8, mask head 12 of 12",
    "cascade_mask_rcnn": "box head 78 of 78, mask head 36 of 36",
}
BODY = "backbone 59 of 59, stage norms 4 of 4, feature pyramid 8 of 8, proposal network 6 of 6"


def detector(
    seed: int, kind: DetectorKind = "mask_rcnn", config: ModelConfig = DENSE, **changes: Any
) -> Detector:
    """With every tensor random, running statistics too."""
    model = randomize(build_detector(config, DetectorConfig(kind=kind, **(SMALL | changes))), seed=seed)
    for i, buffer in enumerate(statistics(model).values()):
        buffer.copy_(randn(*buffer.shape, seed=seed + i).abs() + 0.5)
    return model.eval()


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    """As the training code saves them: `state_dict` beside what else there is."""
    torch.save({"meta": {"epoch": 36}, "state_dict": tensors, "optimizer": {}}, path)
    return path


def assert_same(model: Detector, other: Detector) -> None:
    first, second = state(model), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_tensor_of_a_released_file(dialect: str, kind: DetectorKind, tmp_path: Path) -> None:
    source, model = detector(1, kind), detector(2, kind)
    tensors = released(source, dialect)
    report = load_weights(model, written(tensors, tmp_path / "detector.pth"))
    assert_same(model, source)
    assert report.format == DIALECTS[dialect]
    assert report.changes == [f"taken from the weights: {BODY}, {PARTS[kind]} tensors"]
    assert report.notices == ["the prefix backbone. of the names was removed"]
    assert report.initial == {}
    reasons = {name.rpartition(".")[2]: reason for name, reason in report.dropped.items()}
    counters = {"num_batches_tracked": "a counter of training steps"} if "cascade" in kind else {}
    assert reasons == counters | {"relative_position_index": "a buffer, computed anew"}
    assert report.loaded == len(tensors) - len(report.dropped)
    stage = "roi_head.bbox_head.2.shared_convs.3.bn" if "cascade" in kind else "roi_head.bbox_head.fc_cls"
    assert f"{stage}.weight" in tensors, "a name of the released files"


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: DetectorKind, tmp_path: Path) -> None:
    """Bit by bit, in each format; what the formats of others have besides are counters and index buffers."""
    source, inputs = detector(1, kind), InputSpec(mean=(0.5,) * 3, std=(0.5,) * 3, eval_crop=1.0)
    inputs = replace(inputs, classes=("a", "b", "c", "d", "e"))
    for form, dialect in (("native", None), ("official", "official"), ("mmdet", "zoo")):
        path, model = save_weights(source, tmp_path / form, form, inputs), detector(2, kind)
        load_weights(model, path)
        assert_same(model, source)
        if dialect:
            content, expected = torch.load(path, weights_only=True), released(source, dialect)
            assert content["meta"] == {"CLASSES": inputs.classes}
            assert content["state_dict"].keys() == expected.keys()
            for name, tensor in content["state_dict"].items():
                constant = name.endswith(("relative_position_index", "num_batches_tracked"))
                assert constant or torch.equal(tensor, expected[name]), name


def test_a_tensor_too_few_or_too_many_is_refused(tmp_path: Path) -> None:
    tensors, model = released(detector(1), "official"), detector(2)
    before = state(model)
    for ending in ("rpn_cls.bias", "lateral_convs.1.conv.weight", "shared_fcs.1.bias", "upsample.weight"):
        few = {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}
        with pytest.raises(WeightsError, match="1 tensors of the model are missing"):
            load_weights(model, written(few, tmp_path / "few.pth"))
    many = tensors | {"roi_head.mask_head.convs.4.conv.bias": torch.ones(4)}
    with pytest.raises(WeightsError, match="1 tensors are none of the model's"):
        load_weights(model, written(many, tmp_path / "many.pth"))
    cascade = written(released(detector(1, "cascade_mask_rcnn"), "official"), tmp_path / "cascade.pth")
    with pytest.raises(WeightsError, match="20 tensors of the model are missing .*roi_head"):
        load_weights(model, cascade)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    report = load_weights(model, cascade, parts=["backbone"])
    assert report.changes[0].startswith("taken from the weights: backbone 59 of 59, stage norms 0 of 4")


@pytest.mark.parametrize("kind", ["moby", "simmim", "official"])
def test_the_backbone_of_other_weights(kind: str, tmp_path: Path) -> None:
    """A line says what came from them, and each tensor that did not is named."""
    path, hidden = tmp_path / "weights.pth", replace(DENSE, window_padding="hidden")
    if kind == "simmim":
        simmim = randomize(build_simmim(hidden, SimMIMConfig(mask_patch_size=8), seed=1), seed=4)
        torch.save(simmim.state_dict(), path)
        expected = simmim.encoder
    else:
        expected = randomized(hidden)
        save_weights(expected, path, "official")
    if kind == "moby":
        plain = torch.load(path, weights_only=True)["model"]
        encoder = {name: tensor for name, tensor in plain.items() if not name.startswith("head.")}
        others = {f"encoder_k.{name}": randn(*t.shape, seed=5) for name, t in encoder.items()}
        others |= {f"{part}.linear1.weight": torch.ones(2, 2) for part in ("projector", "projector_k")}
        others |= {"predictor.bn1.running_var": torch.ones(2), "queue1": torch.ones(2, 4)}
        own = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
        torch.save({"model": own | others | {"queue_ptr": torch.zeros(1)}, "epoch": 299}, path)
    model = detector(2)
    report = load_weights(model, path)
    assert report.changes == [
        "taken from the weights: backbone 59 of 59, stage norms 0 of 4, feature pyramid 0 of 8, proposal "
        "network 0 of 6, box head 0 of 8, mask head 0 of 12 tensors; the other 38 tensors keep their initial "
        "values"
    ]
    if kind == "moby":
        assert report.format == "MoBY"
        named = [name for name, why in report.dropped.items() if why.endswith("of MoBY")]
        assert {*named} == {*others, "queue_ptr"}
    weights = dict(expected.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.encoder.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes(kind: DetectorKind, tmp_path: Path) -> None:
    """Five in the weights; the background's row of the classifier is the last, and stays."""
    source = detector(1, kind)
    path = written(released(source, "official"), tmp_path / "detector.pth")
    model = detector(2, kind, replace(DENSE, num_classes=2))
    said = r"the box head of the weights has 5 classes, model.num_classes is 2; for a new classifier"
    with pytest.raises(WeightsError, match=said):
        load_weights(model, path)
    before = state(model)
    stages = 3 if "cascade" in kind else 1
    report = load_weights(model, path, head="replace")
    assert report.initial == {"box head": 4 * stages, "mask head": 2 * stages}
    assert report.changes[1] == (
        "classifier of the box head: the model's own of 2 classes stays, that of 5 classes is not used"
    )
    last = [name for name in before if name.split(".")[-2] in ("fc_cls", "fc_reg", "conv_logits")]
    assert len(last) == 6 * stages
    assert all(torch.equal(before[name], state(model)[name]) for name in last)
    report = load_weights(model, path, head=ClassMap(indices=(4, 0)))
    assert report.changes[1:] == [f"{head} head: 2 of 5 classes, by class map" for head in ("box", "mask")]
    rows = {"fc_cls": [4, 0, 5], "fc_reg": [16, 17, 18, 19, 0, 1, 2, 3], "conv_logits": [4, 0]}
    for name in last:
        assert torch.equal(state(model)[name], state(source)[name][rows[name.split(".")[-2]]]), name


def test_heads_that_a_model_lacks_are_named(tmp_path: Path) -> None:
    path = written(released(detector(1), "zoo"), tmp_path / "detector.pth")
    report = load_weights(detector(2, masks=False), path)
    lacking = [why for why in report.dropped.values() if "and the model has none" in why]
    assert lacking == ["the mask head, and the model has none"] * 12
    backbone = build_backbone(DENSE, norm=False)
    report = load_weights(backbone, path)
    lacking = [why for why in report.dropped.values() if "and the model has none" in why]
    parts = {"stage norms": 4, "feature pyramid": 8, "proposal network": 6, "box head": 8, "mask head": 12}
    assert {why: lacking.count(why) for why in lacking} == {
        f"the {part}, and the model has none": count for part, count in parts.items()
    }


HIDDEN = replace(DENSE, window_padding="hidden")
REFUSED = {
    "hf": (DENSE, "hf", "--to hf has no models of detection; --to safetensors holds any"),
    "mmseg": (DENSE, "mmseg", "--to mmseg has no models of detection"),
    "padding": (HIDDEN, "mmdet", "OpenMMLab's mmdet would give other results: .* is hidden"),
    "v2": (replace(DENSE, **V2), "official", "is for Mask R-CNN and its cascade on swin; .* is swinv2"),
    "moe": (
        replace(DENSE, moe=small_moe()),
        "official",
        "its cascade on swin; this backbone is .* 4 experts, and",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_others_could_not_run_is_refused(name: str, tmp_path: Path) -> None:
    config, form, message = REFUSED[name]
    with pytest.raises(WeightsError, match=message):
        save_weights(build_detector(config, DetectorConfig(**SMALL)), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_mmdet_is_for_detectors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--to mmdet is for models of detection, with their heads"):
        save_weights(build_backbone(DENSE), tmp_path / "out", "mmdet")
    upernet = build_segmenter(DENSE, UPerNetConfig(channels=4, auxiliary_channels=0, norm_group_images=2))
    with pytest.raises(WeightsError, match="--to mmdet has no models of segmentation"):
        save_weights(upernet, tmp_path / "out", "mmdet")
