"""What `predict` says of single images: text, records and rows, worked by hand."""

import json
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from data_shards.codecs.registry import CODECS
from data_shards.format.rng import DrawKey
from data_shards.stream.detection import ObjectImages
from launcher.config.schema import DataConfig
from launcher.predict.answerer import Asked, answer_options
from launcher.tasks.answers import NOT_FINITE, AnswerOptions
from launcher.tasks.detection.answers import answers, columns, pictures
from launcher.tasks.detection.data import ImagesAlone
from launcher.tasks.detection.detections import EvalInputs, ImageDetections
from launcher.tasks.detection.pictures import drawn
from tests.launcher.tasks.detection.scenes import Given, batch_of

DATA = DataConfig(train="x", val="y")
NAMES = ("hat", "coat", "shoe")
SCENE = {"image_id": 1, "height": 30, "width": 40, "objects": []}


def detections(masks: bool) -> ImageDetections:
    """A coat, a hat and a shoe; their masks are the first columns of the image."""
    boxes = np.array([[1.5, 2, 30, 28], [0, 0, 8, 8], [2, 2, 4, 4]], np.float32)
    bitmaps = np.zeros((30, 40, 3), np.uint8, order="F")
    for i in range(3):
        bitmaps[:, : i + 1, i] = 1
    counts = [one["counts"] for one in rle.encode(bitmaps)] if masks else None
    scores = np.array([0.875, 0.5, 0.25], np.float32)
    return ImageDetections(boxes, scores, np.array([1, 0, 2]), (30, 40), counts)


def test_the_objects_above_the_threshold() -> None:
    options = AnswerOptions(objects=2, classes=NAMES)
    nothing = detections(True).above(0.9)
    one, other = answers(Given([detections(True), nothing]), batch_of([SCENE] * 2, [0, 1]), options)
    assert one.text == "30 x 40 pixels: coat 87.5% (2 2 30 28), hat 50.0% (0 0 8 8)"
    record = json.loads(json.dumps(one.record))
    assert (record["height"], record["width"]) == (30, 40)
    coat, hat = record["objects"]
    assert {name: coat[name] for name in ("index", "name", "score", "box")} == {
        "index": 1,
        "name": "coat",
        "score": 0.875,
        "box": [1.5, 2.0, 30.0, 28.0],
    }
    assert [rle.area(each["segmentation"]) for each in (coat, hat)] == [30, 60]
    assert rle.decode(hat["segmentation"])[:, :2].all()
    assert columns(options) == [
        "height",
        "width",
        "objects",
        *("index1", "name1", "score1", "left1", "top1", "right1", "bottom1"),
        *("index2", "name2", "score2", "left2", "top2", "right2", "bottom2"),
    ]
    assert one.row == [30, 40, 2, 1, "coat", 0.875, 1.5, 2.0, 30.0, 28.0, 0, "hat", 0.5, 0.0, 0.0, 8.0, 8.0]
    assert (other.text, other.record["objects"]) == ("30 x 40 pixels: no objects", [])
    assert other.row == [30, 40, 0, *[""] * 14]


def test_without_names_and_masks_and_with_more_objects_than_shown() -> None:
    options = AnswerOptions(objects=1, threshold=0.25)
    (one,) = answers(Given([detections(False)]), batch_of([SCENE], [0]), options)
    assert one.text == "30 x 40 pixels: 1 87.5% (2 2 30 28), and 2 more"
    assert [each["index"] for each in one.record["objects"]] == [1, 0, 2]
    assert all(each["name"] is None and "segmentation" not in each for each in one.record["objects"])
    assert one.row == [30, 40, 3, 1, "", 0.875, 1.5, 2.0, 30.0, 28.0]


def test_the_picture_has_what_the_answer_has() -> None:
    task, image = Mock(), torch.full((1, 3, 30, 40), 0.25)
    task.config.data = replace(DATA, mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = EvalInputs(image, torch.tensor([[30, 40]]), torch.ones(1, 2), batch_of([SCENE], [0]))
    options = AnswerOptions(classes=NAMES, threshold=0.6)
    found = pictures(task, Mock(), inputs, Given([detections(True)]), options)
    wanted = drawn(image[0], detections(True).above(0.6), ["coat 0.88"])
    torch.testing.assert_close(found["objects"], wanted)


def test_images_without_annotations_are_those_of_an_evaluation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    body, images = CODECS["image"].encode(pixels), ObjectImages(num_classes=3, short_side=60, long_side=90)
    record = CODECS["objects"].encode({**SCENE, "width": 41})
    transform = ImagesAlone(images)
    assert transform.fields == ("image",)
    found = transform({"image": body}, DrawKey(0, 5))
    wanted = images({"image": body, "annotations": record})
    assert found.keys() == transform.collators.keys() == {"image", "source_size"}
    for name, collator in transform.collators.items():
        assert (found[name] == wanted[name]).all()
        assert collator == images.collators[name]


@pytest.mark.parametrize(("asked", "wanted"), [(None, (2, 5, 0.5)), (9, (2, 9, 0.5)), (1, (1, 1, 0.5))])
def test_options(asked: int | None, wanted: tuple[int, int, float]) -> None:
    """There are no more classes than the model has, and any number of objects."""
    options = answer_options(Asked(top=asked), 2, None)
    assert (options.top, options.objects, options.threshold) == wanted
    assert answer_options(Asked(threshold=0.0), 2, None).threshold == 0.0


def test_numbers_that_are_not_finite_are_not_taken_for_an_empty_image() -> None:
    given = Given([detections(False).above(0.9)], broken=True)
    assert answers(given, batch_of([SCENE], [0]), AnswerOptions()) == [NOT_FINITE]
