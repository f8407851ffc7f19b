"""The record of an image's objects: masks against pycocotools, and everything that may be wrong in one."""

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.image.rle import decode_mask

CODEC = CODECS["objects"]
TRIANGLE = [2.25, 1.5, 8.75, 3.0, 4.5, 9.25]
RECORD: dict[str, Any] = {
    "image_id": 139,
    "file_name": "a/b.jpg",
    "height": 12,
    "width": 10,
    "objects": [
        {"id": 7, "label": 3, "box": [2.25, 1.5, 8.75, 9.25], "area": 21.5, "iscrowd": 0,
         "segmentation": [TRIANGLE]},
        {"id": 8, "label": 0, "box": [0, 0, 10, 12], "area": 20, "iscrowd": 1,
         "segmentation": {"size": [12, 10], "counts": [30, 20, 70]}},
        {"id": 9, "label": 1, "box": [1, 1, 4, 3], "area": 6, "segmentation": None, "ignore": 1},
        {"id": 2**40, "label": 1, "box": [-3, 1, 1, 3.5], "area": 6.0, "segmentation": []},
    ],
}  # fmt: skip


def changed(number: int = 0, **values: Any) -> dict[str, Any]:
    """The record with other values in one of its objects; ... takes a key away."""
    record = deepcopy(RECORD)
    item = record["objects"][number] | values
    record["objects"][number] = {key: value for key, value in item.items() if value is not ...}
    return record


def test_a_record_is_read_as_it_was_written() -> None:
    body = CODEC.encode(RECORD)
    assert json.loads(body) == RECORD
    record = CODEC.decode(body)
    assert (record.image_id, record.file_name, record.height, record.width) == (139, "a/b.jpg", 12, 10)
    assert [item.id for item in record.objects] == [7, 8, 9, 2**40]
    assert record.objects[0].box == (2.25, 1.5, 8.75, 9.25)
    assert [(item.iscrowd, item.ignore) for item in record.objects] == [(0, 0), (1, 0), (0, 1), (0, 0)]
    assert [item.segmentation is None for item in record.objects] == [False, False, True, True]
    assert CODEC.decode(CODEC.encode(RECORD | {"objects": []})).objects == ()


def test_masks_are_pycocotools() -> None:
    compressed = coco_mask.encode(np.asfortranarray(np.eye(12, 10, dtype=np.uint8)))["counts"].decode()
    record = CODEC.decode(
        CODEC.encode(changed(2, segmentation={"size": [12, 10], "counts": compressed}, ignore=0))
    )
    polygon, crowd, eye, without = record.objects
    theirs = coco_mask.decode(coco_mask.frPyObjects([TRIANGLE], 12, 10))[:, :, 0]
    assert np.array_equal(decode_mask(record.counts(polygon), 12, 10), theirs)
    assert 10 < theirs.sum() < 40
    assert record.counts(crowd).tolist() == [30, 20, 70]
    assert np.array_equal(decode_mask(record.counts(eye), 12, 10), np.eye(12, 10))
    with pytest.raises(
        DataError, match=f"object {2**40} of image 139 has no segmentation.*train without masks"
    ):
        record.counts(without)


@pytest.mark.parametrize(
    ("values", "trains"),
    [
        ({}, True),
        ({"iscrowd": 1}, False),
        ({"ignore": 1}, False),
        ({"area": 0}, False),
        ({"box": [2, 2, 2.9, 5]}, False),
        ({"box": [2, 2, 5, 2.9]}, False),
        ({"box": [2, 2, 3, 3]}, True),
    ],
)
def test_which_objects_are_trained_on(values: dict[str, Any], trains: bool) -> None:
    assert CODEC.decode(CODEC.encode(changed(**values))).objects[0].trains == trains


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"id": 7.0}, "object 7.0: id is an integer from 0 on, not 7.0"),
        ({"id": True}, "not true"),
        ({"id": ...}, "object null: it has no id"),
        ({"id": 2**63}, "integer"),
        ({"label": "3"}, 'object 7: label is an integer from 0 on, not "3"'),
        ({"label": -1}, "not -1"),
        ({"box": ...}, "object 7: it has no box"),
        ({"area": ...}, "object 7: it has no area"),
        ({"area": -1}, "area -1 is below 0"),
        ({"area": "12"}, "area is"),
        ({"area": 10**400}, "too large"),
        ({"box": [1, 2, 3]}, "box has 3 numbers, not 4"),
        ({"box": ["1", 2, 3, 4]}, "box is .* it must be 4 numbers"),
        ({"box": [1, 2, True, 4]}, "must be 4 numbers"),
        ({"box": None}, "box is null"),
        ({"box": [5, 2, 4, 4]}, "negative side"),
        ({"box": [10, 2, 14, 4]}, "outside of the image of 10 x 12 pixels"),
        ({"box": [2, -4, 4, -1]}, "outside of the image"),
        ({"iscrowd": 2}, "iscrowd is 0 or 1, not 2"),
        ({"iscrowd": "0"}, "iscrowd is 0 or 1"),
        ({"ignore": 1.0}, "ignore is 0 or 1"),
        ({"segmentation": "abc"}, "segmentation is \"abc\"; it is a list of polygons, or size and counts"),
        ({"segmentation": TRIANGLE}, "list of polygons"),
        ({"segmentation": [[1, 1, 4, 4]]}, "polygon of 4 numbers; x and y of 3 points"),
        ({"segmentation": [[1, 1, 4, 4, 5, 6, 7]]}, "polygon of 7 numbers"),
        ({"segmentation": [[1, 1, 4, "4", 5, 6]]}, "it must be numbers"),
        ({"segmentation": [[1, 1, 4e6, 4, 5, 6]]}, "far outside"),
        ({"segmentation": {"size": [10, 12], "counts": [120]}}, r"size \[10, 12\], where .* \[12, 10\]"),
        ({"segmentation": {"size": [12, 10]}}, "counts null"),
        ({"segmentation": {"counts": [120]}}, "size null"),
        ({"segmentation": {"size": [12, 10], "counts": [60, 61]}}, "121 pixels, where 12 x 10 are 120"),
        ({"segmentation": {"size": [12, 10], "counts": [60, 60.0]}}, "integers from 0 on"),
        ({"segmentation": {"size": [12, 10], "counts": [-1, 121]}}, "integers from 0 on"),
        ({"segmentation": {"size": [12, 10], "counts": "h"}}, "cut short"),
        ({"segmentation": {"size": [12, 10], "counts": "52"}}, "7 pixels"),
    ],
)  # fmt: skip
def test_wrong_objects_are_named(values: dict[str, Any], named: str) -> None:
    record = changed(**values)
    with pytest.raises(DataError, match=named) as caught:
        CODEC.encode(record)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=named):
        CODEC.check(json.dumps(record).encode())


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ([], "a record of objects is a JSON object"),
        ({}, "without image_id"),
        (RECORD | {"image_id": "139"}, "image_id is an integer"),
        (RECORD | {"height": 0}, "height is an integer from 1 on, not 0"),
        (RECORD | {"width": 10.0}, "width is an integer"),
        (RECORD | {"height": 10**6, "width": 10**6}, "at most"),
        (RECORD | {"objects": None}, "objects are a list"),
        (RECORD | {"objects": [3]}, "an object is a JSON object, not 3"),
        (RECORD | {"file_name": 3}, "file_name is a text"),
    ],
)
def test_wrong_records_are_named(record: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        CODEC.encode(record)


@pytest.mark.parametrize("body", [b"", b"\xff", b'{"image_id": NaN}', b"[" * 100_000])
def test_texts_that_are_no_json(body: bytes) -> None:
    with pytest.raises(DataError, match="no JSON text"):
        CODEC.check(body)
