"""The assigner by hand, and by plain loops over Python's numbers."""

import pytest
import torch
from torch import Tensor

from swin_moe.detection.assign import IGNORED, NEGATIVE, assign
from swin_moe.detection.boxes import pairwise_iou
from tests.swin_moe.detection.test_boxes import random_boxes

RPN = {"positive": 0.7, "negative": 0.3, "min_positive": 0.3, "low_quality": True}
BOX_HEAD = {"positive": 0.5, "negative": 0.5, "min_positive": 0.5, "low_quality": True}


def wide(width: float) -> list[float]:
    """A box of height 10 whose IoU with `wide(10)` is width / 10, for widths up to 10."""
    return [0.0, 0.0, width, 10.0]


def run(boxes: list[list[float]], gt: list[list[float]], **rules: float) -> list[int]:
    valid = torch.ones(len(gt), dtype=torch.bool)
    return assign(torch.tensor(boxes), torch.tensor(gt).view(-1, 4), valid, **(RPN | rules)).tolist()  # type: ignore[arg-type]


def test_thresholds() -> None:
    """IoU 0.75 is positive, 0.5 ignored, 0.25 negative; the thresholds themselves belong upwards."""
    boxes = [wide(7.5), wide(5), wide(2.5), [50.0, 50, 60, 60]]
    assert run(boxes, [wide(10)]) == [0, IGNORED, NEGATIVE, NEGATIVE]
    exact = run(boxes, [wide(10)], positive=0.5, negative=0.25, low_quality=False)
    assert exact == [0, 0, IGNORED, NEGATIVE]


def test_an_object_without_a_good_box_gets_its_best_ones() -> None:
    """Both boxes of IoU 0.5 are best; none if the best IoU, 0.25, is below the least one."""
    other = [0.0, 5.0, 10.0, 10.0]  # half of the object too
    assert run([wide(4), wide(5), other], [wide(10)]) == [IGNORED, 0, 0]
    assert run([wide(2.5), wide(2)], [wide(10)]) == [NEGATIVE, NEGATIVE]
    assert run([wide(5), wide(2)], [wide(10)], low_quality=False) == [IGNORED, NEGATIVE]


def test_the_order_of_objects_matters_in_the_low_quality_step() -> None:
    """The box has IoU 1 with one object and 0.4 with another, whose best it is too.

    The last object of which it is a best box stays, though the first step gave it the other.
    """
    same, large = wide(10), wide(25)
    assert run([wide(10)], [same, large]) == [1]
    assert run([wide(10)], [large, same]) == [1]
    assert run([wide(10)], [same, large], low_quality=False) == [0]
    assert run([wide(10)], [large, same], low_quality=False) == [1]
    assert run([wide(10)], [same, same, same], low_quality=False) == [0]  # of equal ones the first


def test_no_object() -> None:
    boxes = random_boxes(5)
    for gt in (torch.zeros(0, 4), boxes[:3]):
        nothing = torch.zeros(len(gt), dtype=torch.bool)
        assert assign(boxes, gt, nothing, **RPN).tolist() == [NEGATIVE] * 5  # type: ignore[arg-type]
        some = torch.tensor([True, False, True, True, False])
        found = assign(boxes, gt, nothing, **RPN, valid=some)  # type: ignore[arg-type]
        assert found.tolist() == [NEGATIVE, IGNORED, NEGATIVE, NEGATIVE, IGNORED]
    assert assign(torch.zeros(0, 4), boxes, torch.ones(5, dtype=torch.bool), **RPN).shape == (0,)  # type: ignore[arg-type]


def slow_assign(
    boxes: Tensor, gt: Tensor, real: list[bool], valid: list[bool], rules: dict[str, float]
) -> list[int]:
    """The published assigner, box by box and then object by object."""
    iou = pairwise_iou(boxes, gt).tolist()
    numbers = [g for g in range(len(gt)) if real[g]]
    result = []
    for box in range(len(boxes)):
        highest = max((iou[box][g] for g in numbers), default=0.0)
        found = IGNORED
        if highest < rules["negative"]:
            found = NEGATIVE
        if numbers and highest >= rules["positive"]:
            found = next(g for g in numbers if iou[box][g] == highest)
        result.append(found if valid[box] else IGNORED)
    for g in numbers if rules["low_quality"] else []:
        highest = max(iou[box][g] for box in range(len(boxes)) if valid[box])
        for box in range(len(boxes)):
            if valid[box] and highest >= rules["min_positive"] and iou[box][g] == highest:
                result[box] = g
    return result


@pytest.mark.parametrize(
    "rules", [RPN, BOX_HEAD, {**BOX_HEAD, "positive": 0.6, "negative": 0.6, "low_quality": False}]
)
@pytest.mark.parametrize("seed", range(4))
def test_by_loops(rules: dict[str, float], seed: int) -> None:
    """Boxes of whole pixels in a small image have many ties; some boxes and objects do not count."""
    generator = torch.Generator().manual_seed(seed)
    boxes, gt = (random_boxes(n, seed=seed + n) / 12 for n in (300, 12))
    boxes, gt = boxes.round().float(), gt.round().float()
    real, valid = (torch.rand(len(x), generator=generator) < 0.8 for x in (gt, boxes))
    found = assign(boxes, gt, real, **rules, valid=valid)  # type: ignore[arg-type]
    assert found.tolist() == slow_assign(boxes, gt, real.tolist(), valid.tolist(), rules)
    assert found.max() >= 0
    assert (found == NEGATIVE).any()
