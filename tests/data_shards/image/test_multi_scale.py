"""Multi-scale views: sizes, crops and mirroring fill their ranges, evenly; the rounding of sizes."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.annotations import source_pixels, transform_labels
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.multi_scale import MultiScaleTransform
from data_shards.image.resize_crop import fitted_size

VIEWS = MultiScaleTransform()
COUNT = 1200


def test_the_rounding_of_sizes() -> None:
    """min(1333 / 640, 800 / 427) = 1.87354; 640 times that is 1199.06."""
    assert fitted_size(427, 640, 1333, 800) == (800, 1199)
    assert fitted_size(640, 427, 1333, 800) == (1199, 800)
    assert fitted_size(300, 1200, 1333, 800) == (333, 1333)  # the long side decides: 300 x 1.1108 = 333.25


def test_sizes_crops_and_mirroring_fill_their_ranges() -> None:
    steps = [VIEWS.steps(427, 640, DrawKey(5, position)) for position in range(COUNT)]
    alone = [one[0] for one in steps if len(one) == 1]
    cropped = [one for one in steps if len(one) == 2]
    assert abs(len(alone) - COUNT / 2) < 4 * (COUNT / 4) ** 0.5  # four standard deviations
    assert abs(sum(one[-1].mirrored for one in steps) - COUNT / 2) < 4 * (COUNT / 4) ** 0.5
    shorts = Counter(min(one.resized) for one in alone)
    assert set(shorts) == set(range(480, 801, 32))
    mean = len(alone) / 11
    assert (
        sum((count - mean) ** 2 / mean for count in shorts.values()) < 29.6
    )  # 0.1 % of chi-square, 10 degrees
    firsts = {min(one.resized) for one, _ in cropped}
    assert firsts == {400, 500, 600}
    for first, second in cropped:
        window = first.window
        assert window is not None
        assert not first.mirrored
        assert 0 <= window.top <= first.resized[0] - window.height
        assert 0 <= window.left <= first.resized[1] - window.width
        for side, whole in zip(window[2:], first.resized, strict=True):
            assert min(whole, 384) <= side <= min(whole, 600)
        assert second.crop == Crop(0, 0, window.height, window.width)
        assert min(second.resized) in shorts or max(second.resized) == 1333
    assert max(max(step.resized) for one in steps for step in one) <= 1333


def test_crops_reach_both_ends_of_their_ranges() -> None:
    """A 6 x 9 image stays as it is, and crops of 3 ... 4 pixels lie everywhere in it."""
    views = MultiScaleTransform(
        short_sides=(6,), long_side=9, crop_prob=1.0, crop_short_sides=(6,), crop_sides=(3, 4)
    )
    windows = Counter(views.steps(6, 9, DrawKey(0, position))[0].window for position in range(4000))
    expected = {
        Crop(top, left, height, width)
        for height in (3, 4)
        for width in (3, 4)
        for top in range(6 - height + 1)
        for left in range(9 - width + 1)
    }
    assert set(windows) == expected


def test_a_view_is_a_function_of_its_key() -> None:
    keys = [DrawKey(5, 17), DrawKey(5, 18), DrawKey(6, 17), DrawKey(5, 17, view=1)]
    assert VIEWS.steps(427, 640, keys[0]) == VIEWS.steps(427, 640, DrawKey(5, 17))
    assert len({VIEWS.steps(427, 640, key) for key in keys}) == 4


def test_source_pixels_are_those_of_label_images_step_by_step() -> None:
    labels = np.arange(37 * 53).reshape(37, 53)
    views = MultiScaleTransform(
        short_sides=(20, 44), long_side=90, crop_short_sides=(30, 50), crop_sides=(16, 28)
    )
    for position in range(40):
        steps = views.steps(37, 53, DrawKey(1, position))
        rows, columns = source_pixels(steps)
        result = labels
        for step in steps:
            result = transform_labels(result, step)
        assert np.array_equal(labels[rows][:, columns], result)
    enlarged = Geometry(Crop(0, 0, 2, 2), (2, 4), mirrored=True)
    rows, columns = source_pixels([enlarged])
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 1, 0, 0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"short_sides": ()}, "short_sides"),
        ({"short_sides": (0, 3)}, "short_sides"),
        ({"short_sides": (1400,)}, "short_side"),
        ({"crop_short_sides": ()}, "crop_short_sides"),
        ({"long_side": 10**6}, "smaller"),
        ({"crop_prob": 1.5}, "crop_prob"),
        ({"flip_prob": -1.0}, "flip_prob"),
        ({"crop_sides": (600, 384)}, "crop_sides"),
        ({"crop_sides": (0, 384)}, "crop_sides"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        MultiScaleTransform(**options)
