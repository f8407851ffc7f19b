"""Run lengths against pycocotools and against masks that are taken apart pixel by pixel."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_shards.errors import DataError
from data_shards.image.polygons import polygon_counts
from data_shards.image.rle import (
    Extent,
    check_counts,
    decode_mask,
    encode_mask,
    extent,
    format_counts,
    parse_counts,
    row_runs,
)


def masks(count: int) -> list[np.ndarray]:
    """Masks of 1 to 19 pixels a side of any density, some of them all zeros or all ones."""
    rng = np.random.default_rng(count)
    sizes = rng.integers(1, 20, (count, 2)).tolist()
    return [
        np.full((h, w), i % 2, bool) if i % 7 == 0 else rng.random((h, w)) < rng.random()
        for i, (h, w) in enumerate(sizes)
    ]


def filled(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


def runs_slowly(flat: list[bool]) -> list[int]:
    """The lengths of runs, alternately of False and True, beginning with False, pixel by pixel."""
    runs, value = [0], False
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (filled(4, 5, slice(1, 3), slice(1, 4)), "5220003"),
        (filled(100, 100, slice(0), slice(0)), "`h9"),
        (filled(480, 640, slice(100, 300), slice(200, 500)), "Tkm2X6h80000"),
    ],
)
def test_known_texts(mask: np.ndarray, text: str) -> None:
    """The figures of pycocotools; 4 x 5 has counts 5 2 2 2 2 2 5: 5 2 2, then 0 0 0 3 as differences."""
    assert format_counts(encode_mask(mask)).startswith(text)
    assert len(text) > 8 or format_counts(encode_mask(mask)) == text


def test_a_box_of_the_known_text() -> None:
    counts = encode_mask(filled(480, 640, slice(100, 300), slice(200, 500)))
    assert counts[1::2].sum() == 60_000
    assert extent(counts, 480) == Extent(100, 200, 300, 500)


def test_texts_counts_and_boxes_are_pycocotools() -> None:
    for mask in masks(400):
        theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = encode_mask(mask)
        assert counts.tolist() == runs_slowly(mask.T.ravel().tolist())
        assert format_counts(counts).encode() == theirs["counts"]
        assert parse_counts(theirs["counts"]).tolist() == counts.tolist()
        assert np.array_equal(decode_mask(counts, *mask.shape), mask)
        left, top, width, height = coco_mask.toBbox(theirs)
        expected = (top, left, top + height, left + width) if mask.any() else (0, 0, 0, 0)
        assert extent(counts, len(mask)) == expected


def test_long_and_falling_counts() -> None:
    """Differences of either sign and of up to 31 bits, against pycocotools' own reading and writing."""
    rng = np.random.default_rng(0)
    for bits in range(1, 26):
        counts = rng.integers(0, 2**bits, 9)
        size = [int(counts.sum()), 1]
        theirs = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
        assert format_counts(counts).encode() == theirs["counts"]
        assert parse_counts(theirs["counts"]).tolist() == counts.tolist()
        assert coco_mask.area(theirs) == counts[1::2].sum()
    extreme = [2**31 - 1, 0, 2**31 - 1, 1, 0]
    assert parse_counts(format_counts(np.array(extreme))).tolist() == extreme
    assert parse_counts("").tolist() == []


@pytest.mark.parametrize("text", ["h", "5220003`", "5 2", "5\x1f", "ä", "P" + "p" * 12 + "0"])
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="run lengths"):
        parse_counts(text)


@pytest.mark.parametrize(
    ("counts", "named"), [([], "of 0 pixels"), ([5, 2], "4 x 5 are 20"), ([21, -1], "-1")]
)
def test_counts_that_do_not_cover_the_image(counts: list[int], named: str) -> None:
    with pytest.raises(DataError, match=named):
        check_counts(np.array(counts, dtype=np.int64), 4, 5)


def test_rows_and_columns_of_a_mask_are_those_of_its_bitmap() -> None:
    """Any rows and columns, mirrored or not, with those that leave the mask out among them."""
    rng = np.random.default_rng(1)
    for number, mask in enumerate(masks(400)):
        height, width = mask.shape
        rows = np.sort(rng.integers(0, height, rng.integers(1, 25)))
        columns = np.sort(rng.integers(0, width, rng.integers(1, 25)))
        columns = columns[::-1] if number % 2 else columns
        runs = row_runs(encode_mask(mask), height, rows, columns)
        assert runs.dtype == np.int32
        assert runs.tolist() == runs_slowly(mask[rows][:, columns].ravel().tolist())


@pytest.mark.parametrize(
    ("polygon", "rows", "columns"),
    [
        ([1, 1, 4, 1, 4, 3, 1, 3], slice(1, 3), slice(1, 4)),
        ([1.5, 1.5, 3.5, 1.5, 3.5, 3.5, 1.5, 3.5], slice(2, 4), slice(2, 4)),
    ],
)
def test_known_polygons(polygon: list[float], rows: slice, columns: slice) -> None:
    mask = decode_mask(polygon_counts([polygon], 5, 6), 5, 6)
    assert np.array_equal(mask, filled(5, 6, rows, columns))


def test_polygons_of_an_object_are_joined() -> None:
    one, other = [0, 0, 3, 0, 3, 2, 0, 2], [2, 1, 6, 1, 6, 4, 2, 4]
    joined = filled(5, 7, slice(0, 2), slice(0, 3)) | filled(5, 7, slice(1, 4), slice(2, 6))
    assert np.array_equal(decode_mask(polygon_counts([one, other], 5, 7), 5, 7), joined)
