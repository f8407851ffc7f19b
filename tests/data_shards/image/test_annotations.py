"""Annotations follow their image: by hand, against torch and torchvision, and against the image's pixels."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.annotations import (
    VOID,
    check_same_size,
    transform_boxes,
    transform_labels,
    transform_points,
)
from data_shards.image.decode import decode_crop, decode_frames, decode_image, resize, transform_frames
from data_shards.image.geometry import Crop, EvalTransform, Geometry, TrainTransform, dct_factor
from tests.data_shards.image.smooth_images import encode_jpeg, smooth_image

# 40 x 60 pixels: rows 10 ... 30 and columns 20 ... 50 at twice their size, of which 24 x 50 pixels are kept
BY_HAND = Geometry(Crop(10, 20, 20, 30), (40, 60), window=Crop(6, 4, 24, 50))
PADDED = Geometry(Crop(0, 0, 40, 60), (20, 30), window=Crop(-2, -5, 32, 48), mirrored=True)
GEOMETRIES = {
    "crop": Geometry(Crop(3, 7, 29, 41), (29, 41)),
    "resize": Geometry(Crop(0, 0, 40, 60), (31, 77)),
    "crop, resize": Geometry(Crop(3, 7, 29, 41), (32, 24)),
    "mirrored": Geometry(Crop(3, 7, 29, 41), (32, 24), mirrored=True),
    "window": BY_HAND,
    "centre": EvalTransform(image_size=(24, 28), crop_ratio=0.75).geometry(40, 60),
    "padded": PADDED,
    "reduced": Geometry(Crop(5, 3, 33, 54), (8, 13), mirrored=True),
}


def test_points_by_hand() -> None:
    points = np.array([[20, 10], [22, 13], [21.5, 20.25], [47, 25], [20.0, 20.0]])
    place, inside = transform_points(points, BY_HAND)  # x -> 2 (x - 20) - 4, y -> 2 (y - 10) - 6
    assert place.dtype == np.float32
    assert place.tolist() == [[-4, -6], [0, 0], [-1, 14.5], [50, 24], [-4, 14]]
    assert inside.tolist() == [False, True, False, False, False]  # half open: 50, 24 lies beyond 50 x 24
    mirrored, _ = transform_points(points, BY_HAND._replace(mirrored=True))
    assert mirrored[:, 0].tolist() == [54, 50, 51, 0, 54]
    polygons, inside = transform_points(points[:4].reshape(2, 2, 2), BY_HAND)
    assert polygons.reshape(4, 2).tolist() == place[:4].tolist()
    assert inside.shape == (2, 2)


def test_boxes_by_hand() -> None:
    boxes = np.array([[20, 10, 30, 20], [22, 13, 47, 25], [0, 0, 22, 40], [30, 15, 30, 20], [46, 24, 60, 40]])
    clipped, keep = transform_boxes(boxes, BY_HAND)
    assert clipped.tolist() == [
        [0, 0, 16, 14],
        [0, 0, 50, 24],
        [0, 0, 0, 24],
        [16, 4, 16, 14],
        [48, 22, 50, 24],
    ]
    assert keep.tolist() == [True, True, False, False, True]
    # 20 x 20 pixels of the first are 16 x 14 in the result: 0.56; of the last 2 x 2 of 28 x 32
    assert transform_boxes(boxes, BY_HAND, min_visible=0.55)[1].tolist() == [True, True, False, False, False]
    assert transform_boxes(boxes, BY_HAND, min_visible=0.57)[1].tolist() == [False, True, False, False, False]
    assert transform_boxes(boxes, BY_HAND, min_side=2)[1].tolist() == [True, True, False, False, True]
    assert transform_boxes(boxes, BY_HAND, min_side=15)[1].tolist() == [False, True, False, False, False]
    mirrored, kept = transform_boxes(boxes, BY_HAND._replace(mirrored=True))
    assert mirrored[0].tolist() == [34, 0, 50, 14]
    assert kept.tolist() == keep.tolist()


def test_no_boxes() -> None:
    for boxes in (np.zeros((0, 4)), []):
        clipped, keep = transform_boxes(boxes, BY_HAND)
        assert clipped.shape == (0, 4)
        assert keep.shape == (0,)


def test_labels_by_hand() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    # columns 1 ... 3 to 2 pixels: centres at 1 + 3/2 x 1/2 = 1.75 and 1 + 3/2 x 3/2 = 3.25
    halved = Geometry(Crop(1, 1, 1, 3), (1, 2))
    assert transform_labels(labels, halved).tolist() == [[5, 7]]
    assert transform_labels(labels, halved._replace(mirrored=True)).tolist() == [[7, 5]]
    window = halved._replace(window=Crop(-1, -1, 3, 4))
    assert transform_labels(labels, window).tolist() == [[VOID] * 4, [VOID, 5, 7, VOID], [VOID] * 4]
    stacked = transform_labels(np.stack([labels, labels + 20]), window, fill=0)
    assert stacked[:, 1].tolist() == [[0, 5, 7, 0], [0, 25, 27, 0]]
    assert not stacked[:, ::2].any()
    assert transform_labels(labels.astype(np.float32) / 2, halved).tolist() == [[2.5, 3.5]]


@pytest.mark.parametrize("sides", [(7, 5), (20, 40), (13, 96), (40, 60), (3, 61), (97, 100)])
def test_resized_labels_are_torchs_nearest_exact(sides: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (2, 40, 60), dtype=np.uint8)
    expected = F.interpolate(torch.from_numpy(labels)[None], size=sides, mode="nearest-exact")[0]
    ours = transform_labels(labels, Geometry(Crop(0, 0, 40, 60), sides, in_full=True))
    assert np.array_equal(ours, expected.numpy())


def by_torchvision(boxes: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The boxes and the source's label image, by torchvision's crop, resize, crop (with padding) and flip."""
    found = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(40, 60))
    labels = torch.arange(40 * 60).view(1, 40, 60)
    for kind in ("boxes", "labels"):
        image = found if kind == "boxes" else tv_tensors.Mask(labels)
        image = tv.crop(image, *geometry.source)
        image = tv.resize(image, list(geometry.resized), tv.InterpolationMode.NEAREST_EXACT)
        image = tv.crop(image, *geometry.window) if geometry.window else image
        image = tv.hflip(image) if geometry.mirrored else image
        found, labels = (image, labels) if kind == "boxes" else (found, image)
    return found.numpy(), labels[0].numpy()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_boxes_are_torchvisions(name: str) -> None:
    geometry, generator = GEOMETRIES[name], np.random.default_rng(4)
    x, y = (np.sort(generator.uniform(0, side, (50, 2)).astype(np.float32)) for side in (60, 40))
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    ours, keep = transform_boxes(boxes, geometry)
    expected, _ = by_torchvision(boxes, geometry)
    clipped = tv.clamp_bounding_boxes(
        tv_tensors.BoundingBoxes(torch.from_numpy(expected), format="XYXY", canvas_size=geometry.sides)
    )
    np.testing.assert_allclose(ours, clipped.numpy(), atol=1e-4)
    assert keep.tolist() == ((ours[:, 2] > ours[:, 0]) & (ours[:, 3] > ours[:, 1])).tolist()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_label_images_are_torchvisions(name: str) -> None:
    geometry, labels = GEOMETRIES[name], np.arange(40 * 60).reshape(40, 60)
    _, expected = by_torchvision(np.zeros((1, 4), dtype=np.float32), geometry)
    ours = transform_labels(labels, geometry, fill=0)
    assert ours.shape == geometry.sides
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_bright_rectangle_is_where_its_box_and_its_mask_are(name: str) -> None:
    """The image's intensity has the mask's sum and centre of mass, to a tenth of a pixel."""
    geometry = GEOMETRIES[name]
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[14:24, 28:44] = 1
    file = io.BytesIO()
    Image.fromarray(40 + 160 * mask).save(file, "PNG")  # levels that bicubic's overshoot does not leave
    image = resize(decode_crop(file.getvalue(), geometry), geometry, fill=(40, 40, 40))[0]
    image = (image - 40.0) / 160
    (box,), keep = transform_boxes(np.array([[28, 14, 44, 24]]), geometry)
    assert keep.all()
    assert image.shape == geometry.sides
    assert image.sum() == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.02)
    centre = [
        (np.arange(side) + 0.5) @ image.sum(1 - axis) / image.sum() for axis, side in enumerate(image.shape)
    ]
    np.testing.assert_allclose(centre, [(box[1] + box[3]) / 2, (box[0] + box[2]) / 2], atol=0.1)
    labels = transform_labels(mask, geometry, fill=0)
    assert np.abs(labels - image).mean() < 0.06  # they differ at the rectangle's edges alone
    rows, columns = np.nonzero(labels)
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], box, atol=0.5 + 1e-6
    )


def test_mirrored_twice_is_the_identity() -> None:
    geometry = Geometry(Crop(0, 0, 40, 60), (40, 60), mirrored=True)
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 256, (40, 60), dtype=np.uint8)
    assert np.array_equal(transform_labels(transform_labels(labels, geometry), geometry), labels)
    points = generator.integers(0, 40, (9, 2))
    assert np.array_equal(transform_points(transform_points(points, geometry)[0], geometry)[0], points)
    boxes = np.concatenate([points, points + (20, 0.5)], 1)
    once, _ = transform_boxes(boxes, geometry)
    assert np.array_equal(transform_boxes(once, geometry)[0], boxes.clip(0, (60, 40, 60, 40)))
    pixels = smooth_image(40, 60)
    twice = resize(resize(pixels, geometry).transpose(1, 2, 0), geometry)
    assert np.array_equal(twice, pixels.transpose(2, 0, 1))


def test_a_reduced_decode_moves_annotations_to_the_pixels_that_were_decoded() -> None:
    """Crop rows 5 ... 38 and columns 3 ... 57 at half size are rows 2 ... 18 and columns 1 ... 28."""
    geometry = GEOMETRIES["reduced"]
    assert geometry.factor == dct_factor(geometry.crop, geometry.resized) == 2
    assert geometry.source == Crop(4, 2, 32, 54)
    assert geometry._replace(crop=geometry.source).factor == 2
    assert decode_crop(encode_jpeg(smooth_image(40, 60)), geometry).shape == (16, 27, 3)
    assert geometry._replace(in_full=True).source == geometry.crop


def test_a_window_beyond_the_image_has_the_fill_colour() -> None:
    pixels = smooth_image(40, 60)
    inner = resize(pixels, PADDED._replace(window=None))
    image = resize(pixels, PADDED, fill=(1, 2, 3))
    # 20 x 30 pixels begin at row 2 and column 5 of 32 x 48: mirrored, they end at column 43
    assert image.shape == (3, 32, 48)
    assert np.array_equal(image[:, 2:22, 13:43], inner)
    outside = np.ones((32, 48), dtype=bool)
    outside[2:22, 13:43] = False
    assert np.array_equal(image[:, outside], np.broadcast_to(np.array([[1], [2], [3]]), (3, outside.sum())))
    gray = resize(pixels[..., :1], PADDED, fill=(1, 2, 3))
    assert np.array_equal(gray[:, 2:22, 13:43], np.broadcast_to(inner[:1], inner.shape))
    assert np.array_equal(gray[:, outside], image[:, outside])
    assert not resize(pixels, Geometry(Crop(0, 0, 40, 60), (20, 30), window=Crop(-40, 50, 20, 20))).any()


def test_frames_have_one_geometry() -> None:
    frames = [smooth_image(40, 60)[::step, :, ::turn].copy() for step, turn in ((1, 1), (-1, 1), (1, -1))]
    bodies = [encode_jpeg(frame) for frame in frames]
    transform = TrainTransform(image_size=(24, 32), scale=(0.5, 1.0))
    geometry = transform.geometry(40, 60, DrawKey(3, 5))
    clip = decode_frames(bodies, geometry)
    assert clip.shape == (3, 3, 24, 32)
    for body, frame in zip(bodies, clip, strict=True):
        assert np.array_equal(frame, decode_image(body, transform, DrawKey(3, 5)))
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(body))) for body in bodies])
    assert np.array_equal(transform_frames(decoded, geometry), clip)
    with pytest.raises(DataError, match="frame 1 has 30 x 60 pixels, the first 40 x 60"):
        decode_frames([bodies[0], encode_jpeg(smooth_image(30, 60))], geometry)


@pytest.mark.parametrize(
    "boxes",
    [[[1, 2, 3]], [[1, 2, 3, 4], [5]], [["a", 1, 2, 3]], [[0, 0, np.nan, 1]], [[0, 0, np.inf, 1]], {}, 3],
)
def test_boxes_that_are_none_make_a_bad_sample(boxes: object) -> None:
    with pytest.raises(DataError, match="boxes "):
        transform_boxes(boxes, BY_HAND)


def test_annotations_of_another_image_make_a_bad_sample() -> None:
    with pytest.raises(DataError, match="points of shape"):
        transform_points(np.zeros((3, 4)), BY_HAND)
    with pytest.raises(DataError, match="labels of 29 x 60 pixels for a crop that ends at 30 x 50"):
        transform_labels(np.zeros((29, 60)), BY_HAND)
    with pytest.raises(DataError, match="a label image of 40 x 61 pixels for an image of 40 x 60"):
        check_same_size(np.zeros((2, 40, 61)), (40, 60))
    check_same_size(np.zeros((2, 40, 60)), (40, 60))
