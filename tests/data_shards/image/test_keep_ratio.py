"""Scaled crops and short sides: sizes by hand, pixels against PIL, draws against their ranges."""

import io

import numpy as np
import pytest
from PIL import Image
from torch import zeros
from torchvision.transforms.v2 import RandomShortestSize

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.annotations import VOID, transform_labels
from data_shards.image.decode import decode_crop, decode_views, resize
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.keep_ratio import (
    ScaleCropTransform,
    ShortSideTransform,
    draw_balanced,
    fitting_scale,
)
from data_shards.image.pixels import decode_pixels
from tests.data_shards.image.smooth_images import assert_same_image, encode_jpeg, smooth_image

KEYS = [DrawKey(3, position) for position in range(200)]


def scaled_crop(scale: float, size: tuple[int, int] = (32, 48), flip_prob: float = 0.0) -> ScaleCropTransform:
    return ScaleCropTransform(image_size=size, scale_range=(scale, scale), flip_prob=flip_prob)


def test_a_crop_by_hand() -> None:
    # 32 x 48 pixels at scale 0.5 are 64 x 96 of the image, at scale 2 they are 16 x 24
    for scale, tall, wide in ((0.5, 64, 96), (2.0, 16, 24), (1.5, 21, 32)):
        geometry = scaled_crop(scale).geometry(100, 200, KEYS[0])
        assert geometry.crop[2:] == (tall, wide)
        assert geometry == Geometry(geometry.crop, (32, 48))
    # the height 100 x 0.25 = 25 is padded to 32; 48 / 0.25 = 192 columns are cut
    padded = scaled_crop(0.25).geometry(100, 200, KEYS[0])
    assert padded == Geometry(Crop(0, padded.crop.left, 100, 192), (25, 48), window=Crop(0, 0, 32, 48))
    small = scaled_crop(0.125, flip_prob=1.0).geometry(100, 200, KEYS[0])
    # 12 x 25 pixels at the top right of 32 x 48, mirrored to the top left
    assert small == Geometry(Crop(0, 0, 100, 200), (12, 25), window=Crop(0, -23, 32, 48), mirrored=True)
    assert scaled_crop(0.001).geometry(100, 200, KEYS[0]).resized == (1, 1)


def test_scales_by_hand() -> None:
    assert fitting_scale((100, 200), None, None) == 1
    assert fitting_scale((100, 200), 50, None) == 0.5
    assert fitting_scale((100, 200), None, 50) == 0.25
    assert fitting_scale((200, 100), 300, 500) == 2.5
    at_512 = ScaleCropTransform(image_size=32, scale_range=(1.0, 1.0), short_side=50, flip_prob=0.0)
    assert at_512.geometry(100, 200, KEYS[0]).crop[2:] == (64, 64)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_within_its_border_it_is_pils_resize_cut(scale: float) -> None:
    body, compared = encode_jpeg(smooth_image(90, 130)), 0
    whole = Image.open(io.BytesIO(body))
    scaled = np.asarray(whole.resize((int(130 * scale), int(90 * scale)), Image.Resampling.BICUBIC))
    for key in KEYS[:40]:
        geometry = scaled_crop(scale, flip_prob=0.5).geometry(90, 130, key)
        top, left = geometry.crop.top * scale, geometry.crop.left * scale
        if top % 1 or left % 1:  # half a pixel of the result
            continue
        expected = scaled[int(top) : int(top) + 32, int(left) : int(left) + 48]
        expected = expected[:, ::-1] if geometry.mirrored else expected
        ours = resize(decode_crop(body, geometry), geometry)
        assert_same_image(ours[:, 5:-5, 5:-5], expected[5:-5, 5:-5].transpose(2, 0, 1))
        compared += 1
    assert compared >= 8


def test_only_the_crop_is_decoded() -> None:
    body, factors = encode_jpeg(smooth_image(301, 403)), set()
    transform = ScaleCropTransform(image_size=(24, 40), scale_range=(0.05, 0.6))
    for key in KEYS[:60]:
        geometry = transform.geometry(301, 403, key)
        pixels, factor = decode_crop(body, geometry), geometry.factor
        top, left, height, width = (side // factor for side in geometry.source)
        assert pixels.shape == (height, width, 3)
        full = decode_pixels(body, factor)
        assert np.array_equal(pixels, full[top : top + height, left : left + width])
        factors.add(factor)
    assert factors == {1, 2, 4}


def test_views_of_one_decode_are_those_of_their_own_at_the_smallest_factor() -> None:
    """Results of factor 1, 2 and 4 in one decode, padded ones among them."""
    body, seen = encode_jpeg(smooth_image(301, 403)), set()
    transforms = [
        ScaleCropTransform(image_size=(24, 40), scale_range=(0.05, 0.3)),
        ScaleCropTransform(image_size=(30, 20), scale_range=(0.05, 1.0)),
        ShortSideTransform(short_sides=(20, 60, 200), long_side=400),
    ]
    for position in range(40):
        keys = [DrawKey(1, position, view) for view in range(3)]
        geometries = [
            transform.geometry(301, 403, key) for transform, key in zip(transforms, keys, strict=True)
        ]
        views = decode_views(body, transforms, keys, fill=(9, 8, 7))
        smallest = min(geometry.factor for geometry in geometries)
        for view, geometry in zip(views, geometries, strict=True):
            alone = resize(decode_crop(body, geometry), geometry, fill=(9, 8, 7))
            if geometry.factor == smallest:
                assert np.array_equal(view, alone)
            else:  # a larger decode, of the same part of the image
                assert np.abs(view.astype(int) - alone).mean() < 2
            seen.add((geometry.factor, smallest))
    assert seen >= {(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)}


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_padding_is_below_and_beside_the_image(flip_prob: float) -> None:
    pixels, labels = smooth_image(40, 60), np.full((40, 60), 7, dtype=np.uint8)
    geometry = scaled_crop(0.5, flip_prob=flip_prob).geometry(40, 60, KEYS[0])
    image = resize(pixels, geometry, fill=(1, 2, 3))
    content = resize(pixels, Geometry(Crop(0, 0, 40, 60), (20, 30), mirrored=bool(flip_prob)))
    assert np.array_equal(image[:, :20, :30], content)
    assert (image[:, 20:] == np.array([1, 2, 3])[:, None, None]).all()
    assert (image[:, :, 30:] == np.array([1, 2, 3])[:, None, None]).all()
    expected = np.full((32, 48), VOID, dtype=np.uint8)
    expected[:20, :30] = 7
    assert np.array_equal(transform_labels(labels, geometry), expected)


def test_scales_are_uniform_and_places_reach_every_edge() -> None:
    transform = ScaleCropTransform(image_size=32, scale_range=(0.5, 2.0))
    geometries = [transform.geometry(100, 90, DrawKey(0, position)) for position in range(3000)]
    scales = np.array([32 / geometry.crop.height for geometry in geometries])
    assert 0.5 <= scales.min() < 0.51
    assert 1.95 < scales.max() <= 2.0
    assert abs(scales.mean() - 1.25) < 4.5 * np.sqrt(0.75 / 4 / 3000)  # variance 1.5^2 / 12
    assert abs(np.mean([geometry.mirrored for geometry in geometries]) - 0.5) < 0.04
    crops = [geometry.crop for geometry in geometries]
    assert min(crop.top for crop in crops) == min(crop.left for crop in crops) == 0
    assert any(crop.top + crop.height == 100 for crop in crops)
    assert max(crop.left + crop.width for crop in crops) == 90


def test_an_attempt_draws_another_place_of_the_same_scale() -> None:
    transform = ScaleCropTransform(image_size=32)
    for key in (KEYS[0], KEYS[1], KEYS[1]._replace(view=1)):
        attempts = [transform.geometry(300, 400, key, attempt) for attempt in range(6)]
        assert len({geometry.crop[:2] for geometry in attempts}) == 6
        assert len({(geometry.crop[2:], *geometry[1:]) for geometry in attempts}) == 1
        assert attempts == [transform.geometry(300, 400, key, attempt) for attempt in range(6)]
    drawn = {transform.geometry(300, 400, key) for key in (*KEYS, KEYS[0]._replace(view=1), DrawKey(4, 0))}
    assert len(drawn) == len(KEYS) + 2


def test_a_balanced_crop_is_the_first_attempt_without_a_class_of_three_quarters() -> None:
    labels = np.zeros((100, 120), dtype=np.uint8)
    labels[:30, :40] = np.random.default_rng(0).integers(1, 4, (30, 40))
    labels[60:, 60:] = VOID  # it does not count
    labels[70:80, 80:90] = 5
    transform, attempts = ScaleCropTransform(image_size=20, scale_range=(0.5, 1.0)), []
    for key in KEYS:
        for attempt in range(10):
            geometry = transform.geometry(100, 120, key, attempt)
            top, left, height, width = geometry.crop
            inside = labels[top : top + height, left : left + width]
            ids = inside[inside != VOID].tolist()
            if ids and max(ids.count(one) for one in set(ids)) < 0.75 * len(ids):
                break
        attempts.append(attempt)
        assert draw_balanced(transform, labels, key) == geometry
    assert min(attempts) == 0
    assert 1 in attempts
    assert max(attempts) == 9
    moved = np.where(labels == VOID, 300, labels).astype(np.uint16)
    assert draw_balanced(transform, moved, KEYS[0], void=300) == draw_balanced(transform, labels, KEYS[0])
    one_class = np.full((100, 120), VOID, dtype=np.uint16)
    assert draw_balanced(transform, one_class, KEYS[0], attempts=3) == transform.geometry(
        100, 120, KEYS[0], 2
    )


@pytest.mark.parametrize("source", [(480, 640), (640, 480), (100, 900), (333, 333), (1, 500)])
@pytest.mark.parametrize("short_side", [480, 800])
def test_short_sides_are_torchvisions(source: tuple[int, int], short_side: int) -> None:
    transform = ShortSideTransform(short_sides=[short_side], long_side=1333)
    height, width = transform.geometry(*source, KEYS[0]).resized
    theirs = RandomShortestSize(short_side, 1333)(zeros(1, *source)).shape[-2:]  # truncated, ours is rounded
    assert 0 <= height - theirs[0] <= 1
    assert 0 <= width - theirs[1] <= 1
    assert short_side == min(height, width) or max(height, width) == 1333
    assert max(height, width) <= 1333


def test_short_sides_are_drawn_evenly() -> None:
    transform = ShortSideTransform(short_sides=range(480, 484), long_side=1333)
    geometries = [transform.geometry(500, 700, key) for key in KEYS]
    counts = np.bincount([geometry.resized[0] - 480 for geometry in geometries])
    assert len(counts) == 4
    assert counts.min() > 30  # of 50; 3.3 standard deviations
    assert {geometry.mirrored for geometry in geometries} == {True, False}
    assert all(geometry.crop == (0, 0, 500, 700) and not geometry.in_full for geometry in geometries)
    fixed = ShortSideTransform(short_sides=(480,), long_side=1333, flip_prob=0.0, in_full=True)
    assert {fixed.geometry(500, 700, key) for key in KEYS} == {
        Geometry(Crop(0, 0, 500, 700), (480, 672), in_full=True)
    }


def test_a_short_side_is_pils_resize() -> None:
    body = encode_jpeg(smooth_image(90, 130))
    transform = ShortSideTransform(short_sides=(60,), long_side=80, flip_prob=0.0)
    geometry = transform.geometry(90, 130, KEYS[0])
    assert geometry.resized == (55, 80)  # 90 x 80 / 130 = 55.4
    expected = Image.open(io.BytesIO(body)).resize((80, 55), Image.Resampling.BICUBIC)
    assert_same_image(resize(decode_crop(body, geometry), geometry), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (ScaleCropTransform, {"image_size": 8, "scale_range": (2.0, 0.5)}, "scale_range"),
        (ScaleCropTransform, {"image_size": 8, "short_side": 0}, "short_side"),
        (ScaleCropTransform, {"image_size": 0}, "image_size"),
        (ScaleCropTransform, {"image_size": 8, "flip_prob": 2.0}, "flip_prob"),
        (ShortSideTransform, {"short_sides": (), "long_side": 9}, "short_sides"),
        (ShortSideTransform, {"short_sides": (0, 3), "long_side": 9}, "short_sides"),
        (ShortSideTransform, {"short_sides": (8,), "long_side": 20_000}, "long_side"),
    ],
)
def test_nonsense_is_refused(kind: type, options: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=named):
        kind(**options)
