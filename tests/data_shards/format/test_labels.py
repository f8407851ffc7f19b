"""Labels of other programs: whole numbers in any spelling, names, and what is neither."""

import json
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.labels import WrongLabelError, json_label, label_text, parse_label
from data_shards.pack.indexing import index_tars
from tests.data_shards.image_folders import bodies_by_index, jpeg
from tests.data_shards.tars import flatten, make_tar

WRONG = ["-1", "-1.0", "3.5", "nan", "NaN", "-nan", "inf", "-Infinity", "1e-3", "1e999"]


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (b"7", 7),
        (b"007", 7),
        (b"3.0", 3),
        (b"3.", 3),
        (b"+3", 3),
        (b"-0.0", 0),
        (b" 3 \r\n", 3),
        (b"3\0\0", 3),
        (b"3.000000000000000000e+00", 3),  # numpy.savetxt
        (b"\xef\xbb\xbf12\n", 12),
        (b"\xff\xfe1\x002\x00\r\x00\n\x00", 12),  # UTF-16, as PowerShell writes it
        (b"1111111111", 1111111111),
        (b"dog", "dog"),
        (b"\xef\xbb\xbfdog", "dog"),
        ("\u0663".encode(), "\u0663"),  # a digit, but none of a number here
        (b"3,0", "3,0"),
        (b"n01440764", "n01440764"),
        (b"1_000", "1_000"),
    ],
)
def test_a_label_is_a_number_if_it_is_written_as_one(body: bytes, label: int | str) -> None:
    assert parse_label(label_text(body)) == label


@pytest.mark.parametrize("text", WRONG)
def test_numbers_that_are_no_labels(text: str) -> None:
    with pytest.raises(WrongLabelError, match="must be a whole number from 0"):
        parse_label(text)


@pytest.mark.parametrize(
    ("value", "label"), [("3", 3), ("3.0", 3), ('"3.0"', 3), ('{"label": 2.0}', 2), ('"dog"', "dog")]
)
def test_labels_in_json(value: str, label: int | str) -> None:
    assert json_label(value, "label") == label


@pytest.mark.parametrize("value", ["-1", "3.5", "NaN", "Infinity", "-Infinity", '"-1"', '{"label": 1.5}'])
def test_numbers_in_json_that_are_no_labels(value: str) -> None:
    with pytest.raises(WrongLabelError, match="must be a whole number from 0"):
        json_label(value, "label")


@pytest.mark.parametrize("body", [b"", b" \n", b"\xef\xbb\xbf", b"1\n2", b"\xff\x00\xd8"])
def test_what_is_no_label_is_a_bad_sample(body: bytes) -> None:
    with pytest.raises(ValueError, match="its label") as caught:
        parse_label(label_text(body))
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("suffix", ["cls", "txt", "json"])
@pytest.mark.parametrize("text", ["-1", "nan", "3.5"])
def test_an_index_names_the_member(tmp_path: Path, suffix: str, text: str) -> None:
    body = json.dumps({"label": text}) if suffix == "json" else text
    make_tar(tmp_path / "a.tar", flatten([[("k0.jpg", jpeg(0)), (f"k0.{suffix}", body.encode())]]))
    with pytest.raises(
        DataError, match=rf"a.tar: k0.{suffix}: label {text} must be a whole number"
    ) as caught:
        index_tars(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["{}.0", "\ufeff{}", " {} \n", "{}.000e+00"])
def test_every_spelling_gives_the_same_index(tmp_path: Path, spelling: str) -> None:
    for place, text in (("plain", "{}"), ("other", spelling)):
        members = [[(f"{n}.jpg", jpeg(n)), (f"{n}.cls", text.format(n % 11).encode())] for n in range(12)]
        make_tar(tmp_path / place / "0.tar", flatten(members))
        assert index_tars(tmp_path / place).manifest.classes == tuple(map(str, range(11)))
    found = bodies_by_index(tmp_path / "plain")
    assert bodies_by_index(tmp_path / "other") == found
    assert [label for _, label in found] == [n % 11 for n in range(12)]
