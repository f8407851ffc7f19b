"""The whole detector: an image beside others, images without objects, initial weights, what it gives."""

import pytest
import torch
from torch import Tensor

from swin_moe.backbone.group_batch_norm import update_running_statistics
from swin_moe.detection.config import DetectorKind
from swin_moe.detection.detector import DetectorLosses, DetectorOutput, build_detector
from swin_moe.errors import ModelError
from tests.models import randn, small_moe
from tests.swin_moe.detection.small_detectors import (
    CLASSES,
    KEYS,
    KINDS,
    MODEL,
    SIZES,
    config_of,
    detector,
    images,
    targets,
)


def trained(model: torch.nn.Module, numbers: list[int], places: int | None = None) -> DetectorLosses:
    """The losses of some of the images."""
    objects = targets(numbers, places=places)
    losses = model(images()[numbers], SIZES[numbers], KEYS[numbers], objects)
    assert isinstance(losses, DetectorLosses)
    return losses


def found(model: torch.nn.Module, numbers: list[int], scales: Tensor | None = None) -> DetectorOutput:
    part = None if scales is None else scales[numbers]
    with torch.no_grad():
        output = model.eval()(images()[numbers], SIZES[numbers], KEYS[numbers], scales=part)
    assert isinstance(output, DetectorOutput)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_means_over_images(kind: DetectorKind) -> None:
    """Each image alone, with other places for objects, and all together; the third has no object."""
    model = detector(kind)
    together = trained(model, [0, 1, 2]).terms
    alone = [trained(model, [number], places).terms for number, places in ((0, 4), (1, None), (2, 2))]
    stages = 1 if kind == "mask_rcnn" else 3
    assert len(together) == 2 + 3 * stages
    for name, loss in together.items():
        assert loss.dtype == torch.float32
        each = torch.stack([terms[name] for terms in alone])
        torch.testing.assert_close(each.mean(), loss, rtol=1e-4, atol=1e-6, msg=name)
        assert each[0] > 0, name
    torch.testing.assert_close(trained(model, [0, 1, 2]).total, torch.stack(list(together.values())).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_train(kind: DetectorKind) -> None:
    """Losses are finite, and every parameter has a gradient, which is zero where nothing is learned."""
    model = detector(kind)
    losses = trained(model, [2])
    losses.total.backward()
    for name, loss in losses.terms.items():
        assert torch.isfinite(loss)
        assert (loss == 0) == (name.startswith(("rpn_box", "box_reg", "mask"))), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if "fc_reg" in name or "mask_head" in name or "rpn_reg" in name:
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_all_parameters_learn(kind: DetectorKind) -> None:
    model = detector(kind)
    trained(model, [0, 1]).total.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("kind", KINDS)
def test_detections_of_an_image_beside_another(kind: DetectorKind) -> None:
    model = detector(kind, spread=1.0)
    if kind == "cascade_mask_rcnn":  # running statistics that are not the initial ones
        trained(model, [0, 1])
        update_running_statistics(model)
    together = found(model, [0, 1]).detections
    for row in (0, 1):
        alone = found(model, [row]).detections
        for name, one, other in zip(together._fields, alone, together, strict=True):
            torch.testing.assert_close(one[0], other[row], rtol=1e-4, atol=1e-4, msg=name)
    there = together.labels >= 0
    assert there.any()
    assert torch.equal(there, together.scores > 0.05)
    assert (together.scores[:, 1:] <= together.scores[:, :-1]).all()
    assert together.labels.max() < CLASSES
    height, width = SIZES[:2].unbind(1)
    assert (together.boxes[..., 2] <= width[:, None]).all()
    assert (together.boxes[..., 3] <= height[:, None]).all()
    masks = together.masks
    assert masks is not None
    assert masks.shape == (2, 10, 28, 28)
    assert ((masks > 0).all((2, 3)) == there).all()
    assert masks.max() <= 1


def test_boxes_are_in_pixels_of_the_original() -> None:
    """One scale for both sides moves no box relative to another: the same detections, at other places."""
    model = detector("mask_rcnn", spread=1.0)
    plain = found(model, [0, 1]).detections
    scaled = found(model, [0, 1], torch.full((3, 2), 2.0)).detections
    torch.testing.assert_close(scaled.boxes, plain.boxes / 2)
    assert torch.equal(scaled.labels, plain.labels)
    torch.testing.assert_close(scaled.masks, plain.masks)
    other = found(model, [0], torch.tensor([[4.0, 2.0]])).detections.boxes  # of height and width
    assert other[..., 0::2].max() <= 64 / 2
    assert other[..., 1::2].max() <= 60 / 4


def test_without_masks() -> None:
    model = detector("cascade_mask_rcnn", masks=False, spread=1.0)
    losses = trained(model, [0])
    assert losses.mask is None
    assert len(losses.terms) == 8
    assert found(model, [0]).detections.masks is None
    assert not [name for name in model.state_dict() if "mask" in name]


def test_names_and_initial_weights() -> None:
    model = detector("mask_rcnn")
    assert {name.rpartition(".")[0] for name in model.state_dict() if name.startswith("roi_head")} == {
        *(f"roi_head.bbox_head.{name}" for name in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")),
        *(f"roi_head.mask_head.convs.{i}.conv" for i in range(4)),
        "roi_head.mask_head.upsample",
        "roi_head.mask_head.conv_logits",
    }
    cascade = detector("cascade_mask_rcnn").state_dict()
    for name in ("bbox_head.2.shared_convs.3.bn.running_var", "mask_head.1.convs.0.conv.bias"):
        assert f"roi_head.{name}" in cascade
    again = build_detector(MODEL, config_of("mask_rcnn"), seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_experts_in_the_backbone() -> None:
    """Their statistics come with the losses and with the detections."""
    moe = small_moe(blocks=((), (0,), ()), routing_group_images=1)
    model = build_detector(MODEL.__class__(**(MODEL.__dict__ | {"moe": moe})), config_of("mask_rcnn"), seed=3)
    losses = trained(model, [0, 1])
    assert list(losses.moe) == ["layers.1.blocks.0"]
    assert losses.aux_loss > 0
    (losses.total + losses.aux_loss).backward()
    assert list(found(model, [0]).moe) == ["layers.1.blocks.0"]


def test_training_needs_targets() -> None:
    with pytest.raises(ModelError, match="a detector in training needs the targets of its images"):
        detector("mask_rcnn")(randn(1, 3, 64, 64), SIZES[:1], KEYS[:1])


def test_bf16_weights() -> None:
    """Maps and heads are bf16; boxes, losses and detections fp32."""
    model = detector("cascade_mask_rcnn", spread=1.0).bfloat16()
    losses = trained(model, [0, 1])
    losses.total.backward()
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.terms.values())
    detections = found(model, [0, 1]).detections
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["encoder", "neck", "rpn_head.rpn_cls", "fc_cls", "fc_reg", "mask_head"])
def test_what_is_not_finite_is_told_from_no_objects(kind: DetectorKind, part: str) -> None:
    """NaN in any part of the model; of an image with NaN, that image alone."""
    model = detector(kind, spread=0.5)
    broken = images()
    broken[1] = torch.nan
    with torch.no_grad():
        output = model.eval()(broken, SIZES, KEYS)
        assert output.detections.finite.tolist() == [True, False, True]
        [name, *_] = [name for name, _ in model.named_parameters() if part in name]
        model.get_parameter(name).fill_(torch.nan)
    assert found(model, [0, 1, 2]).detections.finite.tolist() == [False] * 3
