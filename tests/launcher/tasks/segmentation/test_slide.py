"""The windows that slide over an image, at the numbers of mmsegmentation's rule worked by hand."""

import numpy as np
import pytest

from launcher.tasks.segmentation.slide import window_starts, windows_of


@pytest.mark.parametrize(
    ("side", "crop", "stride", "starts"),
    [
        # max(side - crop + stride - 1, 0) // stride + 1 windows, the last one moved to the border
        (512, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),
        (1024, 512, 341, [0, 341, 512]),
        (300, 512, 341, [0]),  # smaller than the window
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (9, 3, 3, [0, 3, 6]),
        (5, 1, 1, [0, 1, 2, 3, 4]),
    ],
)
def test_where_windows_begin(side: int, crop: int, stride: int, starts: list[int]) -> None:
    assert window_starts(side, crop, stride) == starts


@pytest.mark.parametrize(("height", "width"), [(512, 683), (37, 50), (700, 1300), (512, 512)])
def test_windows_cover_an_image_and_have_one_size(height: int, width: int) -> None:
    count = np.zeros((height, width), int)
    windows = windows_of(height, width, (512, 512), (341, 341))
    for rows, columns in windows:
        assert count[rows, columns].shape == (min(height, 512), min(width, 512))
        count[rows, columns] += 1
    assert count.min() >= 1
    assert len(windows) == len(window_starts(height, 512, 341)) * len(window_starts(width, 512, 341))


def test_the_windows_of_an_image_of_512_x_683() -> None:
    assert windows_of(512, 683, (512, 512), (341, 341)) == [
        (slice(0, 512), slice(0, 512)),
        (slice(0, 512), slice(171, 683)),
    ]
