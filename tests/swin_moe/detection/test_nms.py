"""Non-maximum suppression and the order of scores, by plain loops over Python's numbers."""

import pytest
import torch
from torch import Tensor

from swin_moe.detection.nms import batched_nms, class_nms, top_scores
from tests.swin_moe.detection.test_boxes import random_boxes, slow_iou


def slow_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    """Box by box in the order of scores; Python's sort leaves equal scores in their order."""
    kept: list[int] = []
    corners, order, group = boxes.tolist(), scores.tolist(), groups.tolist()
    for i in sorted(range(len(corners)), key=lambda i: -order[i]):
        rivals = (j for j in kept if group[i] == group[j])
        if all(slow_iou(corners[i], corners[j]) <= threshold for j in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("count", [3, 10, 300])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_by_loops(threshold: float, count: int) -> None:
    """Many equal scores, and boxes of whole pixels, some of which overlap by exactly the threshold."""
    generator = torch.Generator().manual_seed(0)
    boxes = (random_boxes(150) / 12).round()
    scores = torch.randint(0, 8, (150,), generator=generator) / 8
    groups = torch.randint(0, 3, (150,), generator=generator)
    found = batched_nms(boxes, scores, groups, threshold, count)
    assert found.tolist() == slow_nms(boxes, scores, groups, threshold)[:count]


def test_the_threshold_itself_does_not_remove() -> None:
    """An IoU of exactly one half, in the first group and in the last, where the offset is 79 x 1201."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.0625], [1190, 0, 1200, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for group in (0, 79):
        groups = torch.full((4,), group)
        assert batched_nms(boxes, scores, groups, 0.5, 9).tolist() == [0, 1, 3]


def test_groups_do_not_meet() -> None:
    boxes = torch.tensor([[-50.0, -50, 50, 50]]).expand(5, 4)
    groups = torch.tensor([0, 1, 0, 2, 1])
    assert batched_nms(boxes, torch.ones(5), groups, 0.5, 9).tolist() == [0, 1, 3]
    assert batched_nms(boxes[:0], torch.ones(0), groups[:0], 0.5, 9).tolist() == []


def test_highest_scores() -> None:
    """As a stable sort has them: both zeros are equal, and negative scores are in order."""
    scores = torch.tensor([[0.5, -0.0, 0.0, -3.0, 7.0, 0.5, -1e-30], [1.0, 1, 1, 1, 1, 1, 1]])
    assert top_scores(scores, 9).tolist() == [[4, 0, 5, 1, 2, 6, 3], [0, 1, 2, 3, 4, 5, 6]]
    many = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)).bfloat16()  # of 8 bits: many ties
    expected = many.float().argsort(dim=1, descending=True, stable=True)
    for count in (1, 100, 4000):
        assert torch.equal(top_scores(many, count), expected[:, :count])


def slow_class_nms(boxes: Tensor, scores: Tensor, valid: Tensor, count: int) -> list[tuple[int, int]]:
    """(row, class) of the detections, class by class; of equal scores the first row and class first."""
    found = []
    for label in range(scores.shape[1]):
        rows = [r for r in range(len(scores)) if valid[r] and scores[r, label] > 0.25]
        own = boxes[rows, label]
        kept = slow_nms(own, scores[rows, label], torch.zeros(len(rows)), 0.5)
        found += [(rows[k], label) for k in kept]
    return sorted(found, key=lambda place: (-scores[place].item(), *place))[:count]


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("count", [5, 400])
def test_detections_by_loops(by_class: bool, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(40, 4) if by_class else random_boxes(40)
    scores = torch.randint(0, 33, (40, 4), generator=generator) / 32
    valid = torch.rand(40, generator=generator) < 0.8
    found = class_nms(boxes, scores, valid, score_threshold=0.25, nms_threshold=0.5, count=count)
    every = boxes if by_class else boxes[:, None].expand(-1, 4, -1)
    expected = slow_class_nms(every, scores, valid, count)
    missing = count - len(expected)
    rows, labels = (torch.tensor(x) for x in zip(*expected, strict=True))
    assert torch.equal(found.rows, torch.cat([rows, torch.zeros(missing).long()]))
    assert torch.equal(found.labels, torch.cat([labels, torch.full((missing,), -1)]))
    assert torch.equal(found.scores, torch.cat([scores[rows, labels], torch.zeros(missing)]))
    assert torch.equal(found.boxes, torch.cat([every[rows, labels], torch.zeros(missing, 4)]))


def test_no_detection() -> None:
    found = class_nms(
        random_boxes(3),
        torch.full((3, 2), 0.05),
        torch.ones(3, dtype=torch.bool),
        score_threshold=0.05,
        nms_threshold=0.5,
        count=4,
    )
    assert found.labels.tolist() == [-1] * 4
    assert found.scores.tolist() == [0.0] * 4
