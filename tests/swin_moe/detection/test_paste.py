"""Masks at the size of their image: by hand, by plain loops, and by torch's grid_sample."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe import gpu
from swin_moe.detection import paste as module
from swin_moe.detection.paste import paste

SIZE = (40, 50)
BOXES = torch.tensor(
    [
        [3.2, 5.1, 30.9, 21.3],
        [-7.0, -4.5, 12.0, 60.0],  # beyond three borders
        [10.0, 10.0, 12.0, 11.0],  # smaller than a probability
        [20.3, 20.3, 20.4, 39.0],  # between two pixel centres
        [44.0, 33.0, 80.0, 70.0],
        [-30.0, -30.0, -20.0, -20.0],  # outside
        [60.0, 3.0, 70.0, 9.0],
        [5.0, 5.0, 5.0, 20.0],  # without an area
    ]
)


def probabilities(side: int = 7) -> Tensor:
    return torch.rand(len(BOXES), side, side, generator=torch.Generator().manual_seed(0))


def interpolated(mask: list[list[float]], place_y: float, place_x: float) -> float:
    """Between the probabilities, whose centres are at whole numbers; zeros all around."""
    side, value = len(mask), 0.0
    for row in (math.floor(place_y), math.floor(place_y) + 1):
        for column in (math.floor(place_x), math.floor(place_x) + 1):
            if 0 <= row < side and 0 <= column < side:
                value += mask[row][column] * (1 - abs(place_y - row)) * (1 - abs(place_x - column))
    return value


def slow_paste(mask: list[list[float]], box: list[float]) -> list[list[float]]:
    """The value of each pixel of the image, pixel by pixel."""
    x1, y1, x2, y2 = box
    side = len(mask)
    if x1 >= x2 or y1 >= y2:
        return [[0.0] * SIZE[1]] * SIZE[0]
    return [
        [
            interpolated(
                mask, (y + 0.5 - y1) / (y2 - y1) * side - 0.5, (x + 0.5 - x1) / (x2 - x1) * side - 0.5
            )
            for x in range(SIZE[1])
        ]
        for y in range(SIZE[0])
    ]


def test_by_hand() -> None:
    """2 x 2 probabilities on 4 x 4 pixels: centres are at 0.5 and 1.5 of the first one, and so on.

    Along a row of the probabilities 1 and 0, pixels have the places -0.25, 0.25, 0.75 and 1.25, and the
    values 0.75, 0.75, 0.25 and 0; at the upper border three fourths of those.
    """
    mask = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    pasted = paste(mask, torch.tensor([[1.0, 1, 5, 5]]), (6, 6))
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[1:5, 1:3] = True
    assert torch.equal(pasted[0], expected)


def test_exactly_one_half_is_inside() -> None:
    """Probabilities of 0.5 on a box of as many pixels as probabilities: every place is a whole number."""
    pasted = paste(torch.full((1, 4, 4), 0.5), torch.tensor([[2.0, 1, 6, 5]]), (8, 8))
    assert pasted.sum() == 16
    assert pasted[0, 1:5, 2:6].all()


@pytest.mark.parametrize("pixels_at_once", [None, 2**26, 6000, 1])
def test_by_loops(pixels_at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and as on a GPU with all masks at once or three or one at a time."""
    if pixels_at_once is not None:
        monkeypatch.setattr(gpu, "on_gpu", lambda x: True)
        monkeypatch.setattr(module, "PIXELS_AT_ONCE", pixels_at_once)
    masks = probabilities() * 0.5 + 0.4
    pasted = paste(masks, BOXES, SIZE)
    values = torch.tensor([slow_paste(m, b) for m, b in zip(masks.tolist(), BOXES.tolist(), strict=True)])
    sure = (values - 0.5).abs() > 1e-5  # elsewhere rounding decides
    assert (~sure).sum() < 3
    assert torch.equal(pasted[sure], (values >= 0.5)[sure])
    assert pasted.flatten(1).sum(1)[[5, 6, 7]].tolist() == [0, 0, 0]
    assert pasted.flatten(1).sum(1)[[0, 1, 4]].min() > 10


def test_by_grid_sample() -> None:
    """At the size of a photograph, with the published 28 x 28 probabilities."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(6, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + 20 + torch.rand(6, 2, generator=generator) * 300], dim=1)
    masks = torch.rand(6, 28, 28, generator=generator)
    x, y = torch.arange(640) + 0.5, torch.arange(427) + 0.5
    across = (x - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    down = (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    grid = torch.stack([across[:, None].expand(-1, 427, -1), down[:, :, None].expand(-1, -1, 640)], dim=-1)
    values = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    different = paste(masks, boxes, (427, 640)) != (values >= 0.5)
    assert different.sum() < 30  # of 1.6 million pixels
    assert ((values - 0.5).abs()[different] < 1e-4).all()


def test_no_mask() -> None:
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)
