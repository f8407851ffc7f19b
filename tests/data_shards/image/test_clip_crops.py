"""The crops of a clip: their places, and their pixels against those of an image."""

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.image.clip_crops import ClipCrops
from data_shards.image.decode import transform_frames
from data_shards.image.geometry import EvalTransform


def places(crops: ClipCrops, height: int, width: int) -> list[tuple[int, int]]:
    return [(one.window.top, one.window.left) for one in crops.geometries(height, width) if one.window]


def test_three_crops_in_the_order_of_mmaction2() -> None:
    crops = ClipCrops(image_size=224, crops=3)
    # 256 x 340 becomes 224 x 298 (297.5): the step is (298 - 224) // 2 = 37.
    assert places(crops, 256, 340) == [(0, 0), (0, 74), (0, 37)]  # left, right, middle
    assert places(crops, 340, 256) == [(0, 0), (74, 0), (37, 0)]  # top, bottom, middle
    assert places(crops, 300, 300) == [(0, 0)] * 3
    assert places(ClipCrops(image_size=8, crops=3), 8, 13) == [(0, 0), (0, 4), (0, 2)]  # (13 - 8) // 2 = 2


def test_five_crops_are_three_and_those_between() -> None:
    crops = ClipCrops(image_size=224, crops=5)
    assert places(crops, 256, 340) == [(0, 0), (0, 74), (0, 37), (0, 18), (0, 56)]
    assert places(crops, 340, 256) == [(0, 0), (74, 0), (37, 0), (18, 0), (56, 0)]
    assert places(crops, 300, 300) == [(0, 0)] * 5


def test_the_centre_crop_is_that_of_images() -> None:
    crops = ClipCrops(image_size=224, crop_ratio=0.875)
    for size in ((256, 340), (340, 256), (240, 427), (100, 100)):
        (found,) = crops.geometries(*size)
        assert found == EvalTransform(image_size=224, crop_ratio=0.875).geometry(*size)
    assert crops.geometries(256, 340)[0].resized == (256, 340)


@pytest.mark.parametrize("size", [(30, 41), (41, 30), (24, 24)])
def test_views_are_windows_of_one_resize(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    crops = ClipCrops(image_size=16, crops=5, crop_ratio=0.8)
    views = crops.views(frames)
    assert [view.shape for view in views] == [(3, 3, 16, 16)] * 5
    for view, geometry in zip(views, crops.geometries(*size), strict=True):
        assert np.array_equal(view, transform_frames(frames, geometry))
    (centre,) = ClipCrops(image_size=16, crop_ratio=0.8).views(frames)
    assert np.array_equal(centre, views[2])


def test_the_resize_keeps_the_picture() -> None:
    smooth = np.asarray(Image.linear_gradient("L").resize((60, 40)).convert("RGB"))
    (view,) = ClipCrops(image_size=20).views(smooth[None])
    assert abs(float(view.mean()) - float(smooth[:, 15:45].mean())) < 2


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match=r"crops \(2\) must be 1, the centre, or 3 or 5"):
        ClipCrops(image_size=8, crops=2)
    with pytest.raises(DataError, match=r"crop_ratio \(0\)"):
        ClipCrops(image_size=8, crop_ratio=0)
    with pytest.raises(DataError, match="need a resize to"):
        ClipCrops(image_size=4096).geometries(1, 100)
