"""RoIAlign: levels, features and gradients, by hand and by plain loops."""

import math

import pytest
import torch
from torch import Tensor
from torchvision import ops

from swin_moe import gpu
from swin_moe.detection import roi_gradient
from swin_moe.detection.roi import RoIAlign, roi_align, roi_levels


def square(side: float) -> list[float]:
    return [3.0, 4.0, 3.0 + side, 4.0 + side]


def test_levels_at_their_borders() -> None:
    """A square of side 112 is the first of the second level, 224 of the third, 448 of the fourth."""
    sides = [0.0, 1.0, 56.0, 111.99, 112.0, 223.98, 224.0, 447.9, 448.0, 5000.0]
    levels = roi_levels(torch.tensor([square(side) for side in sides]), 4)
    assert levels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_by_the_logarithm() -> None:
    """By the area, whatever the shape: 56 x 224 pixels are as large as 112 x 112."""
    sides = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 900
    expected = [
        min(3, max(0, math.floor(math.log2(math.sqrt(width * height) / 56 + 1e-6))))
        for width, height in sides.tolist()
    ]
    boxes = torch.cat([torch.zeros(500, 2), sides], dim=1)
    assert roi_levels(boxes, 4).tolist() == expected
    assert set(expected) == {0, 1, 2, 3}
    assert roi_levels(torch.tensor([[0.0, 0, 56, 224]]), 4).item() == 1


def interpolated(x: Tensor, at_y: float, at_x: float) -> Tensor:
    """A map (C, H, W) between its tokens, whose centres are at whole numbers: (C,); 0 far outside."""
    height, width = x.shape[1:]
    if not (-1 <= at_y <= height and -1 <= at_x <= width):
        return torch.zeros(len(x))
    at_y, at_x = min(max(at_y, 0.0), height - 1.0), min(max(at_x, 0.0), width - 1.0)
    top, left = min(int(at_y), height - 1), min(int(at_x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = at_y - top, at_x - left
    above = x[:, top, left] * (1 - across) + x[:, top, right] * across
    below = x[:, bottom, left] * (1 - across) + x[:, bottom, right] * across
    return above * (1 - down) + below * down


def slow_roi_align(x: Tensor, box: list[float], side: int, scale: float) -> Tensor:
    """RoIAlign of one box on one map (C, H, W): (C, side, side)."""
    x1, y1, x2, y2 = (value * scale - 0.5 for value in box)
    across, down = (x2 - x1) / side, (y2 - y1) / side
    result = torch.zeros(len(x), side, side)
    columns, rows = math.ceil(across), math.ceil(down)
    for i in range(side):
        for j in range(side):
            points = [
                interpolated(x, y1 + down * (i + (p + 0.5) / rows), x1 + across * (j + (q + 0.5) / columns))
                for p in range(rows)
                for q in range(columns)
            ]
            if points:
                result[:, i, j] = torch.stack(points).mean(0)
    return result


def pyramid(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Maps of a canvas of 96 x 128 pixels, two images and three channels, strides 4, 8, 16 and 32."""
    generator = torch.Generator().manual_seed(seed)
    sides = [(96 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    return [torch.randn(2, 3, *side, generator=generator, dtype=dtype) for side in sides]


BOXES = torch.tensor(
    [
        [[3.3, 5.1, 17.9, 30.2], [-9.0, -20.0, 40.0, 17.0], [0.0, 0.0, 0.0, 0.0], [80.0, 60.0, 128.0, 96.0]],
        [
            [0.0, 0.0, 128.0, 96.0],
            [100.0, 70.0, 150.0, 120.0],
            [7.0, 7.0, 8.0, 8.0],
            [5.0, 50.0, 126.0, 60.0],
        ],
    ]
)


def test_features_by_loops() -> None:
    """Boxes of every level; `finest` 12 spreads these small ones over all four."""
    maps, align = pyramid(), RoIAlign((4, 8, 16, 32), 3, finest=12.0)
    features = align([*maps, torch.full((2, 3, 1, 1), math.nan)], BOXES)  # a fifth map is not read
    levels = roi_levels(BOXES, 4, 12.0)
    assert set(levels.flatten().tolist()) == {0, 1, 2, 3}
    expected = [
        slow_roi_align(
            maps[int(levels[image, row])][image],
            BOXES[image, row].tolist(),
            3,
            0.25 / 2 ** int(levels[image, row]),
        )
        for image in range(2)
        for row in range(4)
    ]
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(features[2], torch.zeros(3, 3, 3))  # a box without an area


def test_features_of_half_precision_maps_are_fp32() -> None:
    maps, align = [x.bfloat16() for x in pyramid()], RoIAlign((4, 8, 16, 32), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = align(maps, BOXES)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, align([x.float() for x in maps], BOXES))


def test_an_image_does_not_depend_on_the_one_beside_it() -> None:
    maps, align = pyramid(), RoIAlign((4, 8, 16, 32), 7, finest=12.0)
    both = align(maps, BOXES)
    for image in range(2):
        alone = align([x[image : image + 1] for x in maps], BOXES[image : image + 1])
        assert torch.equal(alone, both[4 * image : 4 * image + 4])


def test_gradients_reach_the_maps_and_no_box() -> None:
    maps = [x[:, :1].contiguous().requires_grad_() for x in pyramid(dtype=torch.float64)]
    boxes = BOXES.double()[:, :2].requires_grad_()
    align = RoIAlign((4, 8, 16, 32), 2, finest=12.0)
    assert torch.autograd.gradcheck(lambda *x: align(x, boxes.detach()), maps, fast_mode=True)
    align(maps, boxes).sum().backward()
    assert boxes.grad is None
    assert all(x.grad is not None for x in maps)  # zeros where a level has no box


def test_no_box_at_all() -> None:
    maps = [x.requires_grad_() for x in pyramid()]
    features = RoIAlign((4, 8, 16, 32), 2)(maps, torch.zeros(2, 5, 4))
    features.sum().backward()
    assert features.shape == (10, 3, 2, 2)
    assert torch.equal(features, torch.zeros_like(features))
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in maps)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 14])
def test_a_constant_map_has_constant_features(side: int) -> None:
    rois = torch.tensor([[0.0, 10, 10, 60, 50]])
    features = roi_align(torch.ones(1, 2, 24, 32), rois, side, 0.25)
    torch.testing.assert_close(features, torch.ones(1, 2, side, side))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_coordinates_that_are_not_finite_give_finite_features(value: float) -> None:
    maps, align = pyramid(), RoIAlign((4, 8, 16, 32), 2)
    boxes = torch.tensor([[[value, 3.0, 9.0, 12.0]], [[1.0, 2.0, value, value]]])
    assert torch.isfinite(align(maps, boxes)).all()


def random_rois(count: int, width: int, height: int) -> Tensor:
    """(count, 5) on three images, of which the second has none; some boxes stick out of the map, far too."""
    generator = torch.Generator().manual_seed(count)
    image = 2 * torch.randint(0, 2, (count, 1), generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    half = torch.rand(count, 2, generator=generator) ** 3 * 70
    return torch.cat([image, centre - half, centre + half], dim=1).double()


@pytest.mark.parametrize("at_once", [{"cpu": 1, "gpu": 1}, {"cpu": 5000, "gpu": 9}, {"cpu": 9, "gpu": 10**6}])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_gradient_is_torchvisions(
    at_once: dict[str, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64; of one box at a time and of many, whatever is best on the device."""
    monkeypatch.setattr(gpu, "on_gpu", lambda x: device == "gpu")
    monkeypatch.setattr(roi_gradient, "NUMBERS_AT_ONCE", at_once)
    maps = torch.randn(3, 4, 13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rois = random_rois(60, 17 * 8, 13 * 8)
    rois[7, 1:] = 0
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    features, expected = roi_align(ours, rois, 5, 1 / 8), ops.roi_align(theirs, rois, 5, 1 / 8, 0, True)
    assert torch.equal(features, expected)
    weight = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for y in (features, expected):
        y.backward(weight)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    assert not ours.grad[1].any()  # type: ignore[index]
    assert (ours.grad[[0, 2]] != 0).double().mean() > 0.8  # type: ignore[index]


def test_gradients_in_autocast_are_fp32() -> None:
    maps, rois = torch.randn(3, 4, 13, 17), random_rois(20, 17 * 8, 13 * 8).float()
    gradients = []
    for inside in (False, True):
        x = maps.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            roi_align(x, rois, 5, 1 / 8).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
