"""Boxes by hand, by plain loops over Python's numbers, and by torchvision's operators."""

import math

import pytest
import torch
from torch import Tensor
from torchvision import ops

from swin_moe.detection.boxes import BoxCoder, area, clip, giou, pairwise_iou

STDS = (0.1, 0.1, 0.2, 0.2)


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, side = (torch.rand(*shape, 2, generator=generator, dtype=dtype) * 60 for _ in range(2))
    return torch.cat([corner, corner + side + 1], dim=-1)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union = both - width * height
    return width * height / union if union else 0.0


def test_iou_by_hand() -> None:
    """5 x 5 pixels shared by two boxes of 100 each: 25 / 175; one inside of the other: 25 / 100."""
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[5.0, 5, 15, 15], [5, 5, 10, 10], [10, 0, 20, 10], [0, 0, 10, 10], [3, 3, 3, 3]])
    assert torch.equal(pairwise_iou(a, b), torch.tensor([[1 / 7, 0.25, 0.0, 1.0, 0.0]]))
    assert torch.equal(area(b), torch.tensor([100.0, 25, 100, 100, 0]))
    nothing = torch.zeros(2, 4)
    assert torch.equal(pairwise_iou(nothing, nothing), torch.zeros(2, 2))
    assert pairwise_iou(torch.zeros(0, 4), b).shape == (0, 5)


def test_iou_by_loops() -> None:
    a, b = random_boxes(20), random_boxes(30, seed=1)
    expected = torch.tensor([[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(pairwise_iou(a, b), expected, rtol=1e-5, atol=1e-6)
    assert pairwise_iou(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_giou() -> None:
    """By hand: two unit squares with a gap of one, the box around them has 3: 0 - 1 / 3."""
    left, right = torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 1])
    torch.testing.assert_close(giou(left, right), torch.tensor(-1 / 3))
    a, b = random_boxes(50), random_boxes(50, seed=1)
    torch.testing.assert_close(giou(a, b), ops.generalized_box_iou(a, b).diagonal())
    torch.testing.assert_close(giou(a, a), torch.ones(50))
    assert torch.isfinite(giou(torch.zeros(4), torch.zeros(4)))


def test_clip() -> None:
    """Each image by its own size: height 30 and width 50, and the reverse."""
    boxes = torch.tensor([[-5.0, -6, 70, 80], [10, 20, 30, 29], [60, 70, 80, 90]]).expand(2, 3, 4)
    clipped = clip(boxes, torch.tensor([[30, 50], [50, 30]])[:, None])
    expected = [
        [[0.0, 0, 50, 30], [10, 20, 30, 29], [50, 30, 50, 30]],
        [[0, 0, 30, 50], [10, 20, 30, 29], [30, 50, 30, 50]],
    ]
    assert torch.equal(clipped, torch.tensor(expected))


def test_the_example_of_the_published_coder() -> None:
    """Centre (30, 60), sides 40 and 80: moved by 0.1 of a side, which grows by e^0.2 = 1.2214."""
    roi, ones = torch.tensor([10.0, 20, 50, 100]), torch.ones(4)
    decoded = BoxCoder(STDS).decode(roi, ones)
    assert [round(x, 3) for x in decoded.tolist()] == [9.572, 19.144, 58.428, 116.856]
    torch.testing.assert_close(BoxCoder(STDS).encode(roi, decoded), ones)
    cut = BoxCoder(STDS).decode(roi, ones, torch.tensor([90, 40]))
    assert [round(x, 3) for x in cut.tolist()] == [9.572, 19.144, 40, 90]


def test_coder_by_loops() -> None:
    rois, boxes = random_boxes(40), random_boxes(40, seed=1)
    deltas = BoxCoder(STDS).encode(rois, boxes)
    for (x1, y1, x2, y2), (bx1, by1, bx2, by2), found in zip(
        rois.tolist(), boxes.tolist(), deltas.tolist(), strict=True
    ):
        expected = [
            ((bx1 + bx2) - (x1 + x2)) / 2 / (x2 - x1) / 0.1,
            ((by1 + by2) - (y1 + y2)) / 2 / (y2 - y1) / 0.1,
            math.log((bx2 - bx1) / (x2 - x1)) / 0.2,
            math.log((by2 - by1) / (y2 - y1)) / 0.2,
        ]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(BoxCoder(STDS).decode(rois, deltas), boxes, rtol=1e-4, atol=1e-4)


def test_a_side_grows_and_shrinks_by_a_bounded_factor() -> None:
    """|ln(16 / 1000)| = 4.135: a side of 10 becomes 625 at most, and 0.16 at least."""
    roi = torch.tensor([0.0, 0, 10, 10])
    decoded = BoxCoder().decode(roi, torch.tensor([[0, 0, 99.0, -99.0], [0, 0, 4.134, -4.134]]))
    width, height = decoded[:, 2] - decoded[:, 0], decoded[:, 3] - decoded[:, 1]
    torch.testing.assert_close(width, torch.tensor([625.0, 10 * math.exp(4.134)]))
    torch.testing.assert_close(height, torch.tensor([0.16, 10 * math.exp(-4.134)]), rtol=1e-4, atol=0)
    assert width[1] < width[0]


def test_offsets_of_padding_are_finite() -> None:
    nothing = torch.zeros(1, 4)
    for rois, boxes in ((nothing, nothing), (nothing, random_boxes(1)), (random_boxes(1), nothing)):
        assert torch.isfinite(BoxCoder(STDS).encode(rois, boxes)).all()


def test_offsets_by_class_broadcast() -> None:
    rois, deltas = random_boxes(5), torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    together = BoxCoder(STDS).decode(rois[:, None], deltas)
    for kind in range(3):
        assert torch.equal(together[:, kind], BoxCoder(STDS).decode(rois, deltas[:, kind]))


def test_half_precision_is_cast_first() -> None:
    rois, deltas = random_boxes(8), torch.randn(8, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = BoxCoder(STDS).decode(rois, deltas)
    assert torch.equal(inside, BoxCoder(STDS).decode(rois, deltas.float()))


def test_gradients() -> None:
    """In fp64, away from the corners of the functions."""
    rois, boxes = (random_boxes(6, seed=seed, dtype=torch.float64) for seed in range(2))
    deltas = (
        torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: giou(BoxCoder(STDS).decode(rois, d), boxes), deltas)
    assert torch.autograd.gradcheck(lambda b: BoxCoder(STDS).encode(rois, b), boxes.requires_grad_())
