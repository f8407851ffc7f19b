"""Right classes by file name in the order of a split: images are known by their bytes, not by the plan."""

import json
from pathlib import Path

import pytest

from data_shards.errors import DataError
from launcher.cli.program import run
from launcher.evaluation.labels import read_labels
from tests.data_shards.image_folders import bodies_by_index, jpeg, make_folder

COUNT, CLASSES = 13, 3
NAMES = [f"{number:04d}.jpg" for number in range(COUNT)]  # of the images, in folders of their classes
RIGHT = [[(number * number) % CLASSES] + [2] * (number % 4 == 1) for number in range(COUNT)]  # made up


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """13 images in shards of 5; image 6 is damaged and left out."""
    folder = make_folder(tmp_path / "in", {"val": COUNT})
    (folder / "val/class-0/0006.jpg").write_bytes(b"no image")
    source = ["--source", "folder", "--directory", str(folder)]
    assert (
        run(["shards", "pack", *source, "--out", str(tmp_path), "--samples-per-shard", "5", "--seed", "3"])
        == 0
    )
    return tmp_path / "val"


def labels(split: Path, text: str, *more: str) -> list[list[int]]:
    """What the command makes of a file, as `eval` reads it."""
    (split.parent / "file").write_text(text)
    out = split.parent / "labels.json"
    source = [
        "--source",
        "folder",
        "--directory",
        str(split.parent / "in"),
        "--images",
        str(split.parent / "file"),
    ]
    assert run(["shards", "labels", str(split), *source, "--out", str(out), *more]) == 0
    return read_labels(out, CLASSES).images or []


def wanted(split: Path) -> list[list[int]]:
    """The classes of the images in the shards, each known by its bytes."""
    number_of = {jpeg(number, 24 + 8 * (number % 7)): number for number in range(COUNT)}
    return [RIGHT[number_of[body]] for body, _ in bodies_by_index(split)]


FORMS = {
    "names": json.dumps(dict(zip(NAMES, RIGHT, strict=True))),
    "paths": json.dumps({f"class-{i % CLASSES}/{NAMES[i]}": right for i, right in enumerate(RIGHT)}),
    "list": json.dumps(RIGHT),
    "classes": json.dumps({n: [f"class-{c}" for c in r] for n, r in zip(NAMES, RIGHT, strict=True)}),
    "text": "".join(f"{n} {' '.join(map(str, r))}\n" for n, r in zip(NAMES, RIGHT, strict=True)),
    "commas": "\n".join(
        f"{n}, {','.join(f'class-{c}' for c in r)}," for n, r in zip(NAMES, RIGHT, strict=True)
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_classes_of_each_image(form: str, split: Path) -> None:
    found = labels(split, FORMS[form])
    assert len(found) == COUNT - 1
    assert found == wanted(split)
    assert found != sorted(found)  # the order matters


def test_a_single_class_and_none(split: Path) -> None:
    found = labels(split, json.dumps(dict.fromkeys(NAMES, 1) | {NAMES[0]: []}))
    assert sorted(found) == [[]] + [[1]] * (COUNT - 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"0000.jpg": 1}), r"lacks class-\d/\d+\.jpg; give an image that must not count an empty"),
        (json.dumps(RIGHT[:-1]), "has 12 entries, and the split 13 images"),
        (json.dumps(dict.fromkeys(NAMES, 3)), r"has the class 3, the split 3 others"),
        (json.dumps({name: [True] for name in NAMES}), "has the class True"),
        (json.dumps(dict.fromkeys(NAMES, "dog")), "has the class 'dog'"),
        (json.dumps({name: {"a": 1} for name in NAMES}), "has the class {'a': 1}"),
        (json.dumps(dict.fromkeys(NAMES)), "has the class None"),
        ("{broken", "cannot read it"),
        ("a 1\na 2\n", "line 2 names a a second time"),
        ("", "lacks class-"),
    ],
)
def test_a_file_that_does_not_fit_is_one_error(text: str, message: str, split: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        labels(split, text)
    assert "\n" not in str(error.value)
    assert not (split.parent / "labels.json").exists()


def test_a_name_of_two_images_needs_its_path(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "in/val" / folder).mkdir(parents=True)
        (tmp_path / "in/val" / folder / "0.jpg").write_bytes(jpeg(ord(folder)))
    source = ["--source", "folder", "--directory", str(tmp_path / "in")]
    assert run(["shards", "pack", *source, "--out", str(tmp_path)]) == 0
    with pytest.raises(DataError, match=r"0\.jpg is the name of several images; write their paths"):
        labels(tmp_path / "val", '{"0.jpg": 0}')
    first = next(body for body, _ in bodies_by_index(tmp_path / "val"))
    assert labels(tmp_path / "val", '{"a/0.jpg": 0, "b/0.jpg": 1}')[0] == [int(first == jpeg(ord("b")))]


def test_another_source_is_refused(split: Path, tmp_path: Path) -> None:
    (tmp_path / "in/val/class-0/9999.jpg").write_bytes(jpeg(9999))
    with pytest.raises(DataError, match="this source is another one, or has changed since"):
        labels(split, FORMS["names"])
    (tmp_path / "in/val").rename(tmp_path / "in/train")
    with pytest.raises(DataError, match="was not packed from folder$"):
        labels(split, FORMS["names"])
