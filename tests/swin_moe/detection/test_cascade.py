"""The stages of box heads against plain loops: regions, refinement, detections and losses."""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.detection.box_head import BoxPredictions
from swin_moe.detection.boxes import BoxCoder
from swin_moe.detection.cascade import ROI_SITE, STAGES, Regions, draw_regions, next_regions, refine
from swin_moe.detection.config import DetectorKind
from swin_moe.detection.mask_head import MASK_SIDE
from swin_moe.detection.roi_head import RoIHead
from swin_moe.detection.targets import Targets
from swin_moe.random.keyed import fold_in
from tests.models import randn
from tests.swin_moe.detection.small_detectors import (
    CLASSES,
    KEYS,
    KINDS,
    SIZES,
    config_of,
    detector,
    targets,
)

Box = tuple[float, float, float, float]
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
PLACES = 40  # for proposals


def proposals() -> Regions:
    """Boxes of three images: the objects, moved a little, and others; the last places are empty."""
    objects = targets([0, 1, 2], places=3)
    shifts = 4 * randn(3, PLACES, 4, seed=1)
    near = objects.boxes.repeat(1, PLACES // 3 + 1, 1)[:, :PLACES] + shifts
    corner = 20 + 12 * randn(3, PLACES, 2, seed=2)
    far = torch.cat([corner, corner + 8 + 10 * randn(3, PLACES, 2, seed=3).abs()], dim=-1)
    boxes = torch.where(
        (torch.arange(PLACES) % 2 == 0)[:, None] & (near[..., 2:] > near[..., :2] + 2).all(-1)[..., None],
        near,
        far,
    )
    boxes = boxes.clamp(0, 64)
    valid = (torch.arange(PLACES) < PLACES - 5).expand(3, -1)
    return Regions(boxes, valid)


def iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / max(areas - width * height, 1e-6)


def slow_draw(
    boxes: list[Box],
    valid: list[bool],
    objects: list[Box],
    key: Tensor,
    threshold: float,
    low: bool,
    count: int,
) -> tuple[list[int], list[int]]:
    """The candidates of an image that are drawn, positives first, and the object of each or -1."""
    owner: list[int] = []
    for box in boxes:
        overlaps = [iou(box, other) for other in objects]
        best = max(overlaps, default=0.0)
        owner.append(overlaps.index(best) if best >= threshold else -1)
    if low:
        for number, other in enumerate(objects):
            overlaps = [iou(box, other) if there else -1.0 for box, there in zip(boxes, valid, strict=True)]
            best = max(overlaps)
            for place, overlap in enumerate(overlaps):
                if best >= threshold and overlap == best:
                    owner[place] = number
    owner += range(len(objects))
    there = [*valid, *[True] * len(objects)]
    hashes = fold_in(key, torch.arange(len(owner))).tolist()
    order = sorted((p for p in range(len(owner)) if there[p]), key=lambda place: hashes[place])
    positive = [place for place in order if owner[place] >= 0][: count // 4]
    negative = [place for place in order if owner[place] < 0][: count - len(positive)]
    drawn = [*sorted(positive), *sorted(negative)]
    return drawn, [owner[place] for place in drawn]


def listed(boxes: Tensor) -> list[Box]:
    return [tuple(row) for row in boxes.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_every_stage_are_a_plain_loop(kind: DetectorKind) -> None:
    config, regions, objects = config_of(kind), proposals(), targets([0, 1, 2], places=4)
    for number, stage in enumerate(STAGES[kind]):
        found = draw_regions(regions, objects, KEYS, stage, number, config, CLASSES)
        keys = fold_in(KEYS, ROI_SITE - number)
        threshold, low = (0.5, True) if kind == "mask_rcnn" else ((0.5, 0.6, 0.7)[number], False)
        for image in range(3):
            real = int(objects.valid[image].sum())
            own = listed(objects.boxes[image, :real])
            boxes, valid = listed(regions.boxes[image]), regions.valid[image].tolist()
            drawn, owner = slow_draw(boxes, valid, own, keys[image], threshold, low, config.roi_samples)
            n = len(drawn)
            assert found.weight[image].tolist() == [1.0] * n + [0.0] * (config.roi_samples - n)
            assert found.owner[image, :n].tolist() == owner
            assert listed(found.boxes[image, :n]) == [[*boxes, *own][place] for place in drawn]
            assert found.is_object[image, :n].tolist() == [place >= PLACES for place in drawn]
            classes = [int(objects.labels[image, o]) if o >= 0 else CLASSES for o in owner]
            assert found.labels[image, :n].tolist() == classes
            assert (found.labels[image, n:] == CLASSES).all()
            assert not found.boxes[image, n:].any()
            assert not found.is_object[image, n:].any()
        assert found.is_object.any()
        assert (found.owner >= 0).sum() > 6, "several positives"


def test_the_draw_of_an_image_ignores_the_others() -> None:
    """Also how many places for objects their batch has; images of other keys draw others."""
    config, regions, stage = (
        config_of("cascade_mask_rcnn", roi_samples=8),
        proposals(),
        STAGES["mask_rcnn"][0],
    )
    together = draw_regions(regions, targets([0, 1, 2], places=7), KEYS, stage, 0, config, CLASSES)
    part = Regions(regions.boxes[1:2], regions.valid[1:2])
    alone = draw_regions(part, targets([1]), KEYS[1:2], stage, 0, config, CLASSES)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[1])
    other_key = draw_regions(part, targets([1]), KEYS[:1], stage, 0, config, CLASSES)
    assert not torch.equal(other_key.boxes, alone.boxes)


def test_few_regions_leave_places() -> None:
    """One valid region and no object: one of the background."""
    valid = torch.zeros(1, PLACES, dtype=torch.bool)
    valid[0, 3] = True
    regions = Regions(proposals().boxes[:1], valid)
    config, stage = config_of("mask_rcnn"), STAGES["mask_rcnn"][0]
    found = draw_regions(regions, targets([2]), KEYS[:1], stage, 0, config, CLASSES)
    assert found.weight.sum() == 1
    assert torch.equal(found.boxes[0, 0], regions.boxes[0, 3])
    assert (found.labels == CLASSES).all()
    assert (found.owner == -1).all()


def decoded(box: Box, deltas: list[float], stds: tuple[float, ...], size: tuple[int, int] | None) -> Box:
    """By hand, with clamped logarithms, cut at the image."""
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = (d * s for d, s in zip(deltas, stds, strict=True))
    limit = abs(math.log(16 / 1000))
    cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    w = (x2 - x1) * math.exp(max(-limit, min(limit, dw)))
    h = (y2 - y1) * math.exp(max(-limit, min(limit, dh)))
    corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if size is None:
        return corners
    height, width = size
    bounds = (width, height, width, height)
    x1, y1, x2, y2 = (max(0.0, min(float(bound), c)) for c, bound in zip(corners, bounds, strict=True))
    return x1, y1, x2, y2


def test_refinement_is_a_plain_loop() -> None:
    config, objects = config_of("cascade_mask_rcnn"), targets([0, 1, 2], places=3)
    drawn = draw_regions(proposals(), objects, KEYS, STAGES[config.kind][1], 1, config, CLASSES)
    rows = 3 * config.roi_samples
    logits, deltas = randn(rows, CLASSES + 1, seed=5), 3 * randn(rows, CLASSES, 4, seed=6)
    logits[:, -1] += 3  # the background is the most likely
    predictions = BoxPredictions(logits, deltas)
    found = next_regions(drawn, predictions, BoxCoder(STDS[1]), SIZES)
    best = refine(drawn.boxes, predictions, BoxCoder(STDS[1]), SIZES)
    for image in range(3):
        for place in range(config.roi_samples):
            row = image * config.roi_samples + place
            foreground = max(range(CLASSES), key=lambda c, row=row: logits[row, c].item())
            label = int(drawn.labels[image, place])
            label = foreground if label == CLASSES else label
            box, size = tuple(drawn.boxes[image, place].tolist()), tuple(SIZES[image].tolist())
            for boxes, column in ((found.boxes, label), (best, foreground)):
                expected = decoded(box, deltas[row, column].tolist(), STDS[1], size)
                assert boxes[image, place].tolist() == pytest.approx(expected, abs=1e-3)
            there = bool(drawn.weight[image, place]) and not drawn.is_object[image, place]
            assert found.valid[image, place] == there


def heads(kind: DetectorKind) -> RoIHead:
    return detector(kind, spread=1.0, detections=6).eval().roi_head


def levels() -> list[Tensor]:
    """The maps that heads read: three images, strides 4, 8, 16."""
    return [randn(3, 8, 64 // stride, 64 // stride, seed=stride) for stride in (4, 8, 16)]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_a_plain_loop(kind: DetectorKind) -> None:
    """Of each image: the boxes stage by stage, softmax, suppression of a class, the best; then masks."""
    head, maps, regions = heads(kind), levels(), proposals()
    scales = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.5, 2.5]])
    found = head.detect(maps, regions, SIZES, scales)
    stages = len(head.box_heads)
    for image in range(3):
        part, size = [x[image : image + 1] for x in maps], tuple(SIZES[image].tolist())
        boxes, logits = regions.boxes[image : image + 1], torch.zeros(PLACES, CLASSES + 1)
        for number in range(stages):
            said, deltas = head.box_heads[number](head.box_align(part, boxes))
            logits += said / stages
            last = boxes
            moved = [
                decoded(box, deltas[row, int(said[row, :-1].argmax())].tolist(), STDS[number], size)
                for row, box in enumerate(listed(boxes[0]))
            ]
            boxes = torch.tensor([moved])
        height, width = scales[image].tolist()
        kept: list[tuple[float, int, Box]] = []
        for label in range(CLASSES):
            scored = []
            for row in range(PLACES):
                score = (logits[row].exp() / logits[row].exp().sum())[label].item()
                if regions.valid[image, row] and score > 0.05:
                    box = decoded(
                        tuple(last[0, row].tolist()), deltas[row, label].tolist(), STDS[stages - 1], size
                    )
                    x1, y1, x2, y2 = box
                    scored.append((score, label, (x1 / width, y1 / height, x2 / width, y2 / height)))
            of_class: list[tuple[float, int, Box]] = []
            for candidate in sorted(scored, reverse=True):
                if all(iou(candidate[2], other[2]) <= 0.5 for other in of_class):
                    of_class.append(candidate)
            kept += of_class
        kept = sorted(kept, reverse=True)[:6]
        n = len(kept)
        assert found.labels[image].tolist() == [label for _, label, _ in kept] + [-1] * (6 - n)
        assert found.scores[image, :n].tolist() == pytest.approx([score for score, _, _ in kept], abs=1e-5)
        for place, (_, label, box) in enumerate(kept):
            assert found.boxes[image, place].tolist() == pytest.approx(box, abs=2e-3)
            on_canvas = found.boxes[image, place] * torch.tensor([width, height, width, height])
            features = head.mask_align(part, on_canvas[None, None])
            masks = [each(features)[0, label].sigmoid() for each in head.mask_heads]
            expected = sum(masks) / len(masks)
            torch.testing.assert_close(found.masks[image, place], expected, rtol=1e-4, atol=1e-4)
        assert found.masks.shape[2:] == (MASK_SIDE, MASK_SIDE)
        assert not found.masks[image, n:].any()
    assert (found.labels >= 0).sum() > 3


def test_losses_of_a_cascade_weigh_its_stages() -> None:
    """Each stage alone by the functions that the tests of losses and of regions hold; weights 1, 1/2, 1/4."""
    model = detector("cascade_mask_rcnn", spread=0.1)
    head, maps, objects = model.roi_head, levels(), targets([0, 1, 2])
    found = head.losses(maps, proposals(), SIZES, objects, KEYS)
    regions = proposals()
    for number, (stage, weight) in enumerate(zip(head.stages, (1.0, 0.5, 0.25), strict=True)):
        drawn = draw_regions(regions, objects, KEYS, stage, number, head.config, CLASSES)
        features = head.box_align(maps, drawn.boxes)
        said = head.box_heads[number](features, drawn.weight)
        class_sum = overlap = 0.0
        for image in range(3):
            for place in range(head.config.roi_samples):
                row, label = image * head.config.roi_samples + place, int(drawn.labels[image, place])
                if drawn.weight[image, place]:
                    class_sum -= said.logits[row].log_softmax(0)[label].item()
                if label < CLASSES:
                    box = tuple(drawn.boxes[image, place].tolist())
                    one = decoded(box, said.deltas[row, label].tolist(), STDS[number], None)
                    other = tuple(objects.boxes[image, drawn.owner[image, place]].tolist())
                    around = (max(one[2], other[2]) - min(one[0], other[0])) * (
                        max(one[3], other[3]) - min(one[1], other[1])
                    )
                    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (one, other))
                    union = areas / (1 + iou(one, other))
                    overlap += 1 - iou(one, other) + (around - union) / around
        divisor = 3 * head.config.roi_samples
        assert found.box_class[number].item() == pytest.approx(weight * class_sum / divisor, rel=1e-4)
        assert found.box_regression[number].item() == pytest.approx(weight * 10 * overlap / divisor, rel=1e-3)
        regions = next_regions(drawn, said, head.coders[number], SIZES)
        if number:
            assert not torch.equal(regions.boxes, proposals().boxes)
    assert found.mask is not None
    assert (found.mask > 0).all()


def no_objects(places: int) -> Targets:
    empty = targets([2], places=places)
    assert not empty.valid.any()
    return empty


def test_no_places_for_objects_are_as_empty_places() -> None:
    config, stage = config_of("mask_rcnn"), STAGES["mask_rcnn"][0]
    part = Regions(*(x[2:3] for x in proposals()))
    none, some = (
        draw_regions(part, no_objects(places), KEYS[2:3], stage, 0, config, CLASSES) for places in (0, 3)
    )
    assert all(torch.equal(one, other) for one, other in zip(none, some, strict=True))
