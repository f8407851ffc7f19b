"""The region proposal network: its size, losses and proposals by plain loops, images that are independent."""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.backbone.flops import count_parameters
from swin_moe.backbone.initialize import initialize
from swin_moe.detection.rpn import (
    RPN_SITE,
    Proposals,
    RPNHead,
    RPNLosses,
    RPNOutput,
    draw_anchors,
    propose,
    rpn_loss,
)
from swin_moe.detection.targets import Targets, take_objects
from swin_moe.random.keyed import fold_in, sample_keys
from tests.swin_moe.detection.test_assign import slow_assign
from tests.swin_moe.detection.test_boxes import random_boxes
from tests.swin_moe.detection.test_nms import slow_nms
from tests.swin_moe.detection.test_sample import slow_sample

STRIDES = (8, 16)
SIZES = torch.tensor([[48, 64], [40, 30], [64, 64]])  # on a canvas of 64 x 64
KEYS = sample_keys(1, torch.arange(3))
SAMPLES = {"samples": 24, "max_positive": 8}


def targets_of(images: int, objects: int) -> Targets:
    """Objects in the corner of the canvas that every image has; the last image has one object less."""
    boxes = random_boxes(images, objects, seed=4) / 3
    labels = torch.zeros(images, objects, dtype=torch.int64)
    if objects:
        labels[-1, -1] = -1
        boxes[-1, -1] = 0
    nothing = torch.zeros(0, dtype=torch.int32)
    return Targets(boxes, labels, nothing, torch.zeros(images, objects + 1, dtype=torch.int64))


def head_and_maps(dtype: torch.dtype = torch.float32) -> tuple[RPNHead, list[Tensor]]:
    head = RPNHead(4, STRIDES, 2.0).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.2
    maps = [torch.randn(3, 4, 64 // s, 64 // s, generator=generator, dtype=dtype) for s in STRIDES]
    return head, maps


def cut(output: RPNOutput, images: slice) -> RPNOutput:
    return output._replace(
        logits=[x[images] for x in output.logits], deltas=[x[images] for x in output.deltas]
    )


def part(targets: Targets, images: slice) -> Targets:
    return targets._replace(boxes=targets.boxes[images], labels=targets.labels[images])


def test_parameters_and_names() -> None:
    with torch.device("meta"):
        head = RPNHead(256, (4, 8, 16, 32, 64), 8.0)
    assert count_parameters(head) == 593_935
    names = {name for name, _ in head.named_parameters()}
    assert names == {f"rpn_{x}.{kind}" for x in ("conv", "cls", "reg") for kind in ("weight", "bias")}


def test_initial_weights() -> None:
    head = RPNHead(64, STRIDES, 8.0)
    initialize(head, seed=1, std=0.02)
    for name, values in head.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(values, torch.zeros_like(values))
        else:
            assert values.std().item() == pytest.approx(0.01, rel=0.15)


def test_logits_and_offsets_stand_at_their_anchors() -> None:
    """The channels of a token: a logit of each anchor; the four offsets of an anchor side by side."""
    head, maps = head_and_maps()
    output = head(maps)
    assert [len(x) for x in output.anchors] == [8 * 8 * 3, 4 * 4 * 3]
    for x, logits, deltas in zip(maps, output.logits, output.deltas, strict=True):
        hidden = head.rpn_conv(x).relu()
        cls, reg, width = head.rpn_cls(hidden), head.rpn_reg(hidden), x.shape[3]
        for row, column, anchor in ((0, 0, 0), (1, 2, 1), (3, 3, 2)):
            place = (row * width + column) * 3 + anchor
            assert torch.equal(logits[:, place], cls[:, anchor, row, column])
            assert torch.equal(deltas[:, place], reg[:, 4 * anchor : 4 * anchor + 4, row, column])


def slow_losses(
    output: RPNOutput, targets: Targets, image: int, border: int, beta: float
) -> tuple[float, float]:
    """The two losses of an image, anchor by anchor, over Python's numbers."""
    anchors = [box for level in output.anchors for box in level.tolist()]
    logits = torch.cat(output.logits, 1)[image].tolist()
    deltas = torch.cat(output.deltas, 1)[image].tolist()
    image_height, image_width = SIZES[image].tolist()
    tokens = [
        (y * stride, x * stride)
        for (height, width), stride in zip(output.sides, STRIDES, strict=True)
        for y in range(height)
        for x in range(width)
        for _ in range(3)
    ]
    valid = [
        y < -(-image_height // 32) * 32
        and x < -(-image_width // 32) * 32
        and (border < 0 or (x1 >= 0 and y1 >= 0 and x2 < image_width and y2 < image_height))
        for (y, x), (x1, y1, x2, y2) in zip(tokens, anchors, strict=True)
    ]
    rules = {"positive": 0.7, "negative": 0.3, "min_positive": 0.3, "low_quality": True}
    gt = targets.boxes[image]
    owner = slow_assign(torch.tensor(anchors), gt, targets.valid[image].tolist(), valid, rules)
    key = int(fold_in(KEYS[image], RPN_SITE))
    objectness = box = 0.0
    for i in slow_sample(owner, valid, key, 24, 8):
        sign = 1 if owner[i] >= 0 else -1
        objectness += math.log1p(math.exp(-sign * logits[i]))
        if owner[i] >= 0:
            (x1, y1, x2, y2), (gx1, gy1, gx2, gy2) = anchors[i], gt[owner[i]].tolist()
            w, h = x2 - x1, y2 - y1
            wanted = (
                (gx1 + gx2 - x1 - x2) / 2 / w,
                (gy1 + gy2 - y1 - y2) / 2 / h,
                math.log((gx2 - gx1) / w),
                math.log((gy2 - gy1) / h),
            )
            for a, b in zip(deltas[i], wanted, strict=True):
                d = abs(a - b)
                box += d * d / 2 / beta if d < beta else d - beta / 2
    return objectness / 24, box / 24


@pytest.mark.parametrize(("border", "beta"), [(-1, 0.0), (0, 1 / 9)])
def test_losses_by_loops(border: int, beta: float) -> None:
    head, maps = head_and_maps()
    output, targets = head(maps), targets_of(3, 4)
    losses = rpn_loss(output, SIZES, targets, KEYS, **SAMPLES, border=border, beta=beta)
    expected = [slow_losses(output, targets, image, border, beta) for image in range(3)]
    means = torch.tensor(expected).mean(0)
    assert (means > 0).all()
    torch.testing.assert_close(torch.stack(list(losses)), means, rtol=1e-5, atol=1e-6)


def test_losses_are_means_over_images() -> None:
    """Each image draws the same anchors alone as beside others."""
    head, maps = head_and_maps()
    output, targets = head(maps), targets_of(3, 4)
    together = rpn_loss(output, SIZES, targets, KEYS, **SAMPLES)
    alone = [
        rpn_loss(cut(output, one), SIZES[one], part(targets, one), KEYS[one], **SAMPLES)
        for one in (slice(i, i + 1) for i in range(3))
    ]
    for name in RPNLosses._fields:
        mean = torch.stack([getattr(x, name) for x in alone]).mean()
        torch.testing.assert_close(getattr(together, name), mean)


@pytest.mark.parametrize("objects", [0, 2])
def test_no_object(objects: int) -> None:
    """All samples are negatives, the box loss is 0, and every parameter has a finite gradient."""
    head, maps = head_and_maps()
    targets = targets_of(3, objects)
    targets = targets._replace(
        labels=torch.full_like(targets.labels, -1), boxes=torch.zeros_like(targets.boxes)
    )
    losses = rpn_loss(head(maps), SIZES, targets, KEYS, **SAMPLES)
    sum(losses).backward()
    assert losses.objectness > 0
    assert losses.box == 0
    assert all(torch.isfinite(x.grad).all() for x in head.parameters())  # type: ignore[union-attr, arg-type]
    assert head.rpn_reg.weight.grad.abs().sum() == 0  # type: ignore[union-attr]
    assert head.rpn_cls.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_fewer_anchors_than_samples() -> None:
    """240 anchors and 1000 samples: all that are not ignored, and the rest of the places has weight 0."""
    head, maps = head_and_maps()
    output, targets = head(maps), targets_of(3, 4)
    assigned, drawn = draw_anchors(output, SIZES, targets, KEYS, 1000, 500, -1)
    assert drawn.weight.sum(1).tolist() == (assigned > -2).sum(1).tolist()
    losses = rpn_loss(output, SIZES, targets, KEYS, samples=1000, max_positive=500)
    labels, logits = (assigned >= 0).float(), torch.cat(output.logits, 1)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(losses.objectness, each[assigned > -2].sum() / 3000)


def test_gradients() -> None:
    head, maps = head_and_maps(torch.float64)
    targets = targets_of(3, 4)
    parameters = list(head.parameters())

    def loss(*maps: Tensor) -> Tensor:
        losses = rpn_loss(head(maps), SIZES, targets, KEYS, **SAMPLES, beta=1 / 9)
        return torch.stack(list(losses))

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in maps], fast_mode=True)
    for parameter in parameters:
        (gradient,) = torch.autograd.grad(loss(*maps).sum(), parameter)
        assert gradient.abs().sum() > 0


def slow_proposals(
    output: RPNOutput, image: int, pre_nms: int, count: int
) -> list[tuple[float, list[float]]]:
    """(logit, box) of the proposals of an image, level by level."""
    height, width = SIZES[image].tolist()
    boxes, scores, levels = [], [], []
    for level, anchors in enumerate(output.anchors):
        logits, deltas = output.logits[level][image].tolist(), output.deltas[level][image].tolist()
        for i in sorted(range(len(logits)), key=lambda i: -logits[i])[:pre_nms]:
            x1, y1, x2, y2 = anchors[i].tolist()
            dx, dy, dw, dh = deltas[i]
            w, h = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
            cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            columns = [min(max(x, 0.0), width) for x in (cx - w / 2, cx + w / 2)]
            rows = [min(max(y, 0.0), height) for y in (cy - h / 2, cy + h / 2)]
            boxes.append([columns[0], rows[0], columns[1], rows[1]])
            scores.append(logits[i])
            levels.append(level)
    kept = slow_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(levels), 0.6)
    return [(scores[i], boxes[i]) for i in kept[:count]]


@pytest.mark.parametrize(("pre_nms", "count"), [(30, 12), (1000, 1000)])
def test_proposals_by_loops(pre_nms: int, count: int) -> None:
    """A fixed number of places; boxes inside of their image."""
    head, maps = head_and_maps()
    output = head(maps)
    found = propose(output, SIZES, pre_nms=pre_nms, count=count, nms_threshold=0.6)
    assert found.boxes.shape == (3, count, 4)
    for image in range(3):
        expected = slow_proposals(output, image, pre_nms, count)
        n = len(expected)
        assert found.valid[image].tolist() == [True] * n + [False] * (count - n)
        scores, boxes = (torch.tensor(x) for x in zip(*expected, strict=True))
        torch.testing.assert_close(found.scores[image, :n], scores)
        torch.testing.assert_close(found.boxes[image, :n], boxes, rtol=1e-5, atol=1e-4)
        assert not found.boxes[image, n:].any()
        assert not found.scores[image, n:].any()


def test_proposals_of_an_image_do_not_depend_on_those_beside_it() -> None:
    head, maps = head_and_maps()
    output = head(maps)
    rules = {"pre_nms": 40, "count": 30, "nms_threshold": 0.7}
    together = propose(output, SIZES, **rules)  # type: ignore[arg-type]
    for image in range(3):
        one = slice(image, image + 1)
        alone = propose(cut(output, one), SIZES[one], **rules)  # type: ignore[arg-type]
        for name in Proposals._fields:
            assert torch.equal(getattr(alone, name), getattr(together, name)[one])
    assert not together.boxes.requires_grad


def test_boxes_and_losses_of_half_precision_are_fp32() -> None:
    head, maps = head_and_maps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(maps)
        losses = rpn_loss(output, SIZES, targets_of(3, 4), KEYS, **SAMPLES)
        found = propose(output, SIZES, pre_nms=40, count=30, nms_threshold=0.7)
    assert output.logits[0].dtype == torch.bfloat16
    wide = output._replace(
        logits=[x.float() for x in output.logits], deltas=[x.float() for x in output.deltas]
    )
    for a, b in zip(losses, rpn_loss(wide, SIZES, targets_of(3, 4), KEYS, **SAMPLES), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
    again = propose(wide, SIZES, pre_nms=40, count=30, nms_threshold=0.7)
    assert torch.equal(found.boxes, again.boxes)


def test_what_boxes_get_from_their_objects() -> None:
    values = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    numbers = torch.tensor([[1, -1, 0], [-2, 1, 1]])
    assert take_objects(values, numbers).tolist() == [[[3, 4], [0, 0], [1, 2]], [[0, 0], [7, 8], [7, 8]]]
    assert take_objects(values[:, :0], torch.full((2, 3), -1)).tolist() == [[[0, 0]] * 3] * 2
