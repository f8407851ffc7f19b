"""Pictures: where boxes, masks and texts are, and in which colours."""

import colorsys

import numpy as np
import torch
from pycocotools import mask as rle

from data_shards.codecs.objects import ImageObjects, checked_record
from launcher.config.schema import DataConfig
from launcher.tasks.detection.detections import EvalInputs, ImageDetections, as_found
from launcher.tasks.detection.pictures import (
    COVER,
    GAP,
    LONGEST,
    batch_picture,
    beside_truth,
    captions,
    captions_of_truth,
    colour_of,
    drawn,
)
from tests.launcher.tasks.detection.scenes import Given, batch_of

DATA = DataConfig(train="x", val="y")
NAMES = ("hat", "coat", "shoe", "bag")
GREY = torch.full((3, 50, 100), 0.5)
HEIGHT = LONGEST // 2  # of an image that is twice as wide as high


def found(masks: bool = True) -> ImageDetections:
    """At a tenth of what is shown: a box of class 3 with a mask in its lower half; one beyond the border."""
    bitmaps = np.zeros((50, 100, 2), np.uint8, order="F")
    bitmaps[30:40, 20:60, 0] = 1
    counts = [one["counts"] for one in rle.encode(bitmaps)] if masks else None
    boxes = np.array([[20, 20, 60, 40], [90, 45, 130, 70]], np.float32)
    scores, labels = np.array([0.9, 0.123], np.float32), np.array([3, 0])
    return ImageDetections(boxes, scores, labels, (50, 100), counts)


def at(picture: torch.Tensor, x: float, y: float) -> list[int]:
    """The colour at a place of the image of 100 x 50 pixels."""
    column, row = round(x * LONGEST / 100), round(y * LONGEST / 100)
    return [round(value * 255) for value in picture[:, row, column].tolist()]


def test_boxes_and_masks_are_where_they_should_be() -> None:
    picture = drawn(GREY, found(), ["a", "b"])
    assert picture.shape == (3, HEIGHT, LONGEST)
    colour, plain = list(colour_of(3)), [128] * 3
    assert at(picture, 20, 30) == at(picture, 60, 30) == at(picture, 40, 20) == colour
    mixed = [round(128 * (1 - COVER) + part * COVER) for part in colour]
    assert at(picture, 40, 35) == mixed
    assert at(picture, 40, 25) == at(picture, 70, 35) == at(picture, 10, 10) == plain
    assert at(picture, 99.7, 48) == list(colour_of(0))  # its right side is that of the picture
    bare = drawn(GREY, found(masks=False), ["a", "b"])
    assert at(bare, 40, 35) == plain
    assert torch.equal(picture[:, :80], bare[:, :80])  # texts and boxes above the mask are the same


def test_texts_are_on_the_colour_of_their_class() -> None:
    """Dark on a light colour; nothing else is changed above the box."""
    with_text, without = (drawn(GREY, found(), [text, ""]) for text in ("coat", ""))
    changed = (with_text != without).any(0).nonzero()
    top, left = changed.min(0).values.tolist()
    bottom, right = changed.max(0).values.tolist()
    corner = round(20 * LONGEST / 100)
    assert left >= corner
    assert bottom <= corner + 1
    assert 12 < right - left < 60
    assert 8 < bottom - top < 20
    inside = with_text[:, top : bottom + 1, left : right + 1]
    assert inside.min() < 0.2
    drawn(GREY, found(), ["外套", "\N{SNOWMAN}"])  # characters that the font may lack
    crowded = found()._replace(boxes=np.array([[0, 0, 2, 2], [98, 0, 100, 2]], np.float32))
    assert drawn(GREY, crowded, ["a long name", "another long name"]).shape == (3, HEIGHT, LONGEST)


def test_the_first_is_on_top() -> None:
    both = found()._replace(boxes=np.array([[20, 20, 60, 40]] * 2, np.float32))
    assert at(drawn(GREY, both, ["", ""]), 40, 40) == list(colour_of(3))


def test_colours_of_few_classes_differ() -> None:
    hues = sorted(colorsys.rgb_to_hsv(*(part / 255 for part in colour_of(label)))[0] for label in range(10))
    assert min(b - a for a, b in zip(hues, hues[1:], strict=False)) > 0.05


def test_the_first_image_of_a_batch() -> None:
    """Its picture has no padding, and the colours from before it was normalized."""
    image = torch.rand(3, 25, 50, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATA.mean, DATA.std))
    canvas = torch.zeros(2, 3, 32, 64)
    canvas[0, :, :25, :50] = (image - mean) / std
    scene = {"image_id": 1, "height": 50, "width": 100, "objects": []}
    batch, sizes = batch_of([scene, None], [0, -1]), torch.tensor([[25, 50], [0, 0]])
    inputs = EvalInputs(canvas, sizes, torch.full((2, 2), 0.5), batch)
    torch.testing.assert_close(inputs.shown(DATA), image)
    picture = batch_picture(inputs, Given([found(), found()]), DATA, NAMES, 0.5)
    wanted = beside_truth(image, ImageObjects(1, "", 50, 100, ()), found().above(0.5), NAMES)
    torch.testing.assert_close(picture, wanted)


def test_the_truth_beside_it() -> None:
    size, bitmap = [50, 100], np.zeros((50, 100), np.uint8, order="F")
    bitmap[:3] = 1
    text = rle.encode(bitmap)["counts"].decode()
    objects = [
        {"label": 1, "iscrowd": 0, "segmentation": [[20, 20, 60, 20, 60, 40, 20, 40]]},
        {"label": 2, "iscrowd": 1, "segmentation": {"size": size, "counts": [0, 5000]}},
        {"label": 2, "iscrowd": 0, "segmentation": {"size": size, "counts": text}},
    ]
    record = [{**one, "id": i, "box": [1, 2, 30, 40], "area": 9.0} for i, one in enumerate(objects)]
    truth, names = checked_record({"image_id": 7, "height": 50, "width": 100, "objects": record}), list(NAMES)
    there = as_found(truth)
    assert there.bitmaps().sum((1, 2)).tolist() == [800, 5000, 300]
    assert captions_of_truth(truth, names) == ["coat", "shoe (crowd)", "shoe"]
    assert captions_of_truth(truth, None) == ["1", "2 (crowd)", "2"]
    assert captions(found(), names) == ["bag 0.90", "hat 0.12"]
    picture = beside_truth(GREY, truth, found(), names)
    assert picture.shape == (3, HEIGHT + GAP, 3 * (LONGEST + GAP))
    plain, _, right = picture[:, :HEIGHT].split(LONGEST + GAP, dim=2)
    assert (plain[:, :, :LONGEST] * 255).round().unique().tolist() == [128]
    torch.testing.assert_close(right[:, :, :LONGEST], drawn(GREY, found(), captions(found(), names)))
    nothing = ImageObjects(7, "", 50, 100, ())
    assert beside_truth(GREY, nothing, found().above(1.0), None).shape == picture.shape
