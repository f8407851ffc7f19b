"""Crops of resized images: sizes and places by hand, the rule of the largest class by hand and in full."""

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, uniform
from data_shards.image.annotations import VOID
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.resize_crop import (
    ResizeCropTransform,
    draw_balanced_crop,
    fitted_size,
    valid_size,
)

KEYS = [DrawKey(3, position) for position in range(200)]


@pytest.mark.parametrize(
    ("source", "ratio", "size"),
    [
        ((512, 683), 1.0, (512, 683)),
        ((300, 400), 1.0, (512, 683)),  # 400 x 512 / 300 = 682.7
        ((1000, 3000), 1.0, (512, 1536)),
        ((500, 2500), 1.0, (410, 2048)),  # the long side decides: 500 x 2048 / 2500 = 409.6
        ((512, 683), 0.5, (256, 342)),  # 341.5, rounded half up
        ((512, 683), 0.75, (384, 512)),
        ((512, 683), 1.25, (640, 854)),
        ((512, 683), 1.75, (896, 1195)),
        ((683, 512), 1.75, (1195, 896)),
        ((400, 400), 0.999, (511, 511)),  # the bound is 511.488, rounded down
        ((1, 9000), 0.5, (1, 1024)),
    ],
)
def test_fitted_sizes_by_hand(source: tuple[int, int], ratio: float, size: tuple[int, int]) -> None:
    assert fitted_size(*source, 2048, 512, ratio) == size


def test_a_crop_by_hand() -> None:
    """100 x 200 at ratio 1 of (80, 40) is 40 x 80; a crop of 30 x 50 has 11 x 31 places."""
    transform = ResizeCropTransform(
        image_size=(30, 50), long_side=80, short_side=40, ratio_range=(1.0, 1.0), flip_prob=0.0
    )
    seen = set()
    for key in KEYS:
        draws = key.draws(Purpose.SCALE_CROP)
        place = int(uniform(draws, 2) * 11), int(uniform(draws, 3) * 31)
        geometry = transform.geometry(100, 200, key)
        assert geometry == Geometry(Crop(0, 0, 100, 200), (40, 80), Crop(*place, 30, 50))
        assert valid_size(geometry) == (30, 50)
        seen.add(place)
    assert {top for top, _ in seen} == set(range(11))
    assert min(left for _, left in seen) == 0
    assert max(left for _, left in seen) == 30


def test_padding_is_below_and_on_the_right_mirrored_or_not() -> None:
    """10 x 20 pixels in a result of 16 x 32; mirrored, the window begins 12 columns before the image."""
    options = {"image_size": (16, 32), "long_side": 20, "short_side": 10, "ratio_range": (1.0, 1.0)}
    for flip_prob, left in ((0.0, 0), (1.0, -12)):
        geometry = ResizeCropTransform(**options, flip_prob=flip_prob).geometry(100, 200, KEYS[0])
        assert geometry.window == Crop(0, left, 16, 32)
        assert valid_size(geometry) == (10, 20)
        labels = np.ones((100, 200), dtype=np.uint8)
        labels[:, 100:] = 2
        _, mask = draw_balanced_crop(ResizeCropTransform(**options, flip_prob=flip_prob), labels, KEYS[0])
        row = [2] * 10 + [1] * 10 if flip_prob else [1] * 10 + [2] * 10
        expected = np.full((16, 32), VOID)
        expected[:10, :20] = row
        assert np.array_equal(mask, expected)


def test_ratios_are_uniform() -> None:
    transform = ResizeCropTransform(image_size=8, long_side=4000, short_side=1000)
    geometries = [transform.geometry(100, 130, DrawKey(0, position)) for position in range(3000)]
    ratios = np.array([geometry.resized[0] / 1000 for geometry in geometries])
    assert 0.5 <= ratios.min() < 0.51
    assert 1.99 < ratios.max() <= 2.0
    assert abs(ratios.mean() - 1.25) < 4.5 * np.sqrt(0.75 / 4 / 3000)  # variance 1.5^2 / 12
    assert abs(np.mean([geometry.mirrored for geometry in geometries]) - 0.5) < 0.04


STRIP = ResizeCropTransform(
    image_size=(1, 4), long_side=8, short_side=1, ratio_range=(1.0, 1.0), flip_prob=0.0
)


@pytest.mark.parametrize(
    ("labels", "accepted"),
    [
        ([0, 0, 0, 1], False),  # 3 of 4 are three quarters, which must not be reached
        ([0, 0, 1, 2], True),
        ([0, 0, 1, VOID], True),  # 2 of 3
        ([0, 0, 0, VOID], False),  # one class
        ([VOID] * 4, False),  # no class
        ([0, 1, VOID, VOID], True),
        ([7, 7, 7, 7], False),
    ],
)
def test_which_crops_are_accepted_by_hand(labels: list[int], accepted: bool) -> None:
    """Four pixels are the only crop of four; another crop is drawn only where this one is refused."""
    mask = np.array([labels * 2], dtype=np.uint8)  # 8 pixels: five places, all of the same four labels
    geometry, crop = draw_balanced_crop(STRIP, mask, KEYS[0])
    places = [STRIP.geometry(1, 8, KEYS[0], attempt) for attempt in range(11)]
    assert geometry == places[0 if accepted else 10]
    assert sorted(crop[0].tolist()) == sorted(labels)


def test_the_first_place_that_is_accepted_or_the_tenth_redraw() -> None:
    """The rule in full, in Python, of places that overlap two classes or do not."""
    rng, attempts = np.random.default_rng(0), []
    labels = np.zeros((60, 80), dtype=np.uint8)
    labels[:20, :25] = rng.integers(1, 4, (20, 25))
    labels[40:, 30:] = VOID
    transform = ResizeCropTransform(image_size=8, long_side=26, short_side=20, ratio_range=(0.5, 1.5))
    for key in KEYS[:50]:
        for attempt in range(11):
            geometry = transform.geometry(60, 80, key, attempt)
            ids = [
                int(
                    labels[
                        (2 * y + 1) * 60 // (2 * geometry.resized[0]),
                        (2 * x + 1) * 80 // (2 * geometry.resized[1]),
                    ]
                )
                for y in range(geometry.window.top, min(geometry.window.top + 8, geometry.resized[0]))
                for x in range(max(0, geometry.window.left), geometry.window.left + 8)
                if x < geometry.resized[1]
            ]
            ids = [one for one in ids if one != VOID]
            if len(set(ids)) > 1 and max(ids.count(one) for one in set(ids)) / len(ids) < 0.75:
                break
        attempts.append(attempt)
        assert draw_balanced_crop(transform, labels, key)[0] == geometry
    assert {0, 1, 10} <= set(attempts)
    assert draw_balanced_crop(transform, labels, KEYS[5], max_share=1.0)[0] == transform.geometry(
        60, 80, KEYS[5]
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 0}, "image_size"),
        ({"ratio_range": (2.0, 0.5)}, "ratio_range"),
        ({"flip_prob": 2.0}, "flip_prob"),
        ({"long_side": 100, "short_side": 200}, "short_side"),
        ({"long_side": 20_000, "short_side": 20_000}, "20000"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=named):
        ResizeCropTransform(**({"image_size": 8} | options))
