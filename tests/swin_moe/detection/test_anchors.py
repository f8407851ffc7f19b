"""Anchors: the figures of the published detectors, and plain loops."""

import pytest
import torch

from swin_moe.detection.anchors import RATIOS, base_anchors, grid_anchors, valid_anchors

STRIDES = (4, 8, 16, 32, 64)


def sides_of(height: int, width: int) -> list[tuple[int, int]]:
    """H and W of each level of a canvas; the last has every second token of the one before."""
    sides = [(height // stride, width // stride) for stride in STRIDES[:-1]]
    return [*sides, (-(-sides[-1][0] // 2), -(-sides[-1][1] // 2))]


def test_base_anchors_of_stride_4() -> None:
    """Side 32 = 4 x 8 of the square one; the others have its area: 32 x sqrt(2) = 45.255 and 22.627."""
    rounded = [[round(x, 3) for x in anchor] for anchor in base_anchors(4, 8.0)]
    assert rounded == [
        [-22.627, -11.314, 22.627, 11.314],
        [-16, -16, 16, 16],
        [-11.314, -22.627, 11.314, 22.627],
    ]


def test_anchors_of_a_published_canvas() -> None:
    """A canvas of 1344 x 800 pixels has 89,523 tokens; P6 of 25 x 42 has 13 x 21."""
    anchors = grid_anchors(sides_of(800, 1344), STRIDES, 8.0)
    assert sum(len(level) for level in anchors) == 268_569 == 3 * 89_523
    assert len(anchors[-1]) == 3 * 13 * 21


def test_order_and_centres() -> None:
    """Row by row, ratios of a token side by side; the centre of a token's anchors is its corner."""
    sides = [(2, 3), (1, 2)]
    for level, (height, width), stride in zip(grid_anchors(sides, (4, 8), 8.0), sides, (4, 8), strict=True):
        expected = [
            [dx1 + x * stride, dy1 + y * stride, dx2 + x * stride, dy2 + y * stride]
            for y in range(height)
            for x in range(width)
            for dx1, dy1, dx2, dy2 in base_anchors(stride, 8.0)
        ]
        assert level.dtype == torch.float32
        torch.testing.assert_close(level, torch.tensor(expected))


@pytest.mark.parametrize("border", [-1, 0, 5])
def test_valid_anchors_by_loops(border: int) -> None:
    """Images of 70 x 50 and 100 x 128 pixels, padded to 96 x 64 and 128 x 128, on a canvas of 128 x 160."""
    sides, sizes = sides_of(128, 160), [(70, 50), (100, 128)]
    anchors = grid_anchors(sides, STRIDES, 1.0)
    found = valid_anchors(anchors, sides, STRIDES, torch.tensor(sizes), border=border)
    for row, (image_height, image_width) in zip(found.tolist(), sizes, strict=True):
        padded_height, padded_width = -(-image_height // 32) * 32, -(-image_width // 32) * 32
        expected = []
        for (height, width), stride in zip(sides, STRIDES, strict=True):
            for y in range(height):
                for x in range(width):
                    for x1, y1, x2, y2 in base_anchors(stride, 1.0):
                        inside = x * stride < padded_width and y * stride < padded_height
                        left, top, right, bottom = (
                            x * stride + x1,
                            y * stride + y1,
                            x * stride + x2,
                            y * stride + y2,
                        )
                        within = left >= -border and top >= -border
                        within &= right < image_width + border and bottom < image_height + border
                        expected.append(inside and (border < 0 or within))
        assert row == expected
        assert 0 < sum(expected) < len(expected)
    assert len(RATIOS) * sum(height * width for height, width in sides) == found.shape[1]
