"""A COCO JSON of instances: its images, categories and annotations, read element by element.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}]}

Of an annotation only the ids are looked at here. Its text is kept for the process that packs its image, so
that the file, 0.5 GB for COCO's training images, is never in memory as objects of Python. What makes the file
as a whole useless is a DataError; what is wrong with an image is kept beside it.

Legend: N images, A annotations.
"""

import json
import re
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_shards.codecs.objects import integer
from data_shards.errors import DataError
from data_shards.format.classes import listed, shown

SECTIONS = ("images", "annotations", "categories")
SPACE = re.compile(r"[ \t\n\r]*")
ABSENT = -1  # the category of an annotation that has no integer there
ZIP_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: encrypted, other methods
DECODER = json.JSONDecoder()  # takes NaN, which is found where it stands in an annotation

Slices = tuple[int, int]  # where the text of an element begins and ends


@dataclass(frozen=True)
class CocoImage:
    """An image of the list: its id, its path below the folder, its size, and what is wrong there, or ""."""

    id: int
    name: str
    height: int
    width: int
    problem: str = ""


@dataclass(frozen=True)
class CocoFile:
    """`images` in the order of the file, `categories` by their ids in its order.

    `annotations` (N,) have the texts of each image's, as a JSON list; `category_sets` the ids of their
    categories. `orphans` annotations are of images that are not in the list.
    """

    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    annotations: tuple[str, ...]
    category_sets: tuple[frozenset[int], ...]
    orphans: int


def read_coco(path: Path) -> CocoFile:
    """The contents of a file; DataError, one line that names it, where it is no COCO JSON."""
    try:
        text = _body(path).decode("utf-8-sig")
    except (*ZIP_ERRORS, ValueError) as error:
        raise DataError(f"{path}: cannot read it ({error}); get it again") from error
    if not text.strip():
        raise DataError(f"{path}: it is empty; get it again")
    try:
        return _parse(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, RecursionError, IndexError) as error:
        raise DataError(f"{path}: it is no JSON, or is cut short ({error}); get it again") from error


def _body(path: Path) -> bytes:
    """The bytes of a file, also where a part of its path is a zip archive that holds it."""
    archive = next((above for above in path.parents if above.suffix == ".zip" and above.is_file()), None)
    if archive is None:
        return path.read_bytes()
    with zipfile.ZipFile(archive) as file:
        return file.read(path.relative_to(archive).as_posix())


def listed_in(archive: Path, pattern: str) -> list[Path]:
    """The members of a zip archive whose name fits a pattern, as paths below the archive; DataError."""
    try:
        with zipfile.ZipFile(archive) as file:
            return sorted(archive / name for name in file.namelist() if Path(name).match(pattern))
    except ZIP_ERRORS as error:
        raise DataError(f"{archive}: cannot read this zip archive ({error}); get it again") from error


def _parse(text: str) -> CocoFile:
    images: list[CocoImage] = []
    categories: list[tuple[int, str]] = []
    slices, of_image, of_category, ids = array("Q"), array("q"), array("q"), array("q")
    seen = set()
    for section, number, value, (start, stop) in _elements(text):
        seen.add(section)
        if number < 0:
            continue
        if not isinstance(value, dict):
            raise DataError(f"number {number} of its {section} is no JSON object")
        if section == "images":
            images.append(_image(value, number))
        elif section == "categories":
            categories.append(_category(value, number))
        else:
            slices.extend((start, stop))
            of_image.append(_image_id(value, number))
            of_category.append(_id_or_absent(value.get("category_id")))
            ids.append(_id_or_absent(value.get("id")))
    if missing := [section for section in SECTIONS if section not in seen]:
        fix = "it must be a JSON of instances, with images, annotations and categories"
        raise DataError(f"it has no {' and no '.join(missing)}; {fix}")
    _check_unique("images", [image.id for image in images])
    _check_unique("categories", [number for number, _ in categories])
    _check_unique("annotations", [number for number in ids if number != ABSENT])
    if twice := _twice([name for _, name in categories]):
        raise DataError(f"several categories are called {shown(twice)}; give each its own name")
    if not images or not categories:
        raise DataError(f"its list of {'categories' if images else 'images'} is empty; get it again")
    spans = np.array(slices, dtype=np.int64).reshape(-1, 2)
    grouped = _grouped([image.id for image in images], np.array(of_image, dtype=np.int64))
    return CocoFile(
        tuple(images),
        dict(categories),
        tuple(f"[{','.join(text[a:b] for a, b in spans[rows].tolist())}]" for rows in grouped),
        tuple(frozenset(of_category[row] for row in rows.tolist()) for rows in grouped),
        len(of_image) - sum(map(len, grouped)),
    )


def _elements(text: str) -> Iterator[tuple[str, int, Any, Slices]]:
    """Section, number, value and place of every element of the sections; before the first -1 and None."""
    at = _after(text, 0)
    if text[at] != "{":
        raise DataError("it is a JSON, but no object with images, annotations and categories")
    at = _after(text, at + 1)
    while text[at] != "}":
        section, at = DECODER.raw_decode(text, at)
        at = _after(text, at)
        if not isinstance(section, str) or text[at] != ":":
            raise ValueError(f"no key at character {at}")
        at = _after(text, at + 1)
        if section not in SECTIONS:
            _, at = DECODER.raw_decode(text, at)
        elif text[at] != "[":
            raise DataError(f"its {section} are no list")
        else:
            yield section, -1, None, (at, at)
            number, at = 0, _after(text, at + 1)
            while text[at] != "]":
                start = at
                value, at = DECODER.raw_decode(text, at)
                yield section, number, value, (start, at)
                number, at = number + 1, _next(text, at, "]")
            at += 1
        at = _next(text, at, "}")


def _after(text: str, at: int) -> int:
    """The first character from `at` on that is no space."""
    found = SPACE.match(text, at)
    assert found
    return found.end()


def _next(text: str, at: int, end: str) -> int:
    """Where the next element begins, or the bracket that ends them."""
    at = _after(text, at)
    if text[at] == ",":
        return _after(text, at + 1)
    if text[at] != end:
        raise ValueError(f"{text[at]!r} at character {at}, where a comma or {end} belongs")
    return at


def _image(value: dict[str, Any], number: int) -> CocoImage:
    found = integer(value.get("id"), f"number {number} of its images: id")
    name, size = value.get("file_name"), (value.get("height"), value.get("width"))
    if not isinstance(name, str) or not name or not name.isprintable():
        return CocoImage(found, f"image {found}", 1, 1, f"has the file_name {name!r}, which is no name")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return CocoImage(found, name, 1, 1, "has a file_name that leaves the folder of the images")
    height, width = size
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        text = f"has the height {height!r} and the width {width!r}, which are no numbers of pixels"
        return CocoImage(found, name, 1, 1, text)
    return CocoImage(found, name, height, width)


def _category(value: dict[str, Any], number: int) -> tuple[int, str]:
    found = integer(value.get("id"), f"number {number} of its categories: id")
    if not isinstance(name := value.get("name"), str) or not name:
        raise DataError(f"category {found} has the name {name!r}; give it one")
    return found, name


def _image_id(value: dict[str, Any], number: int) -> int:
    what = f"annotation {value.get('id')!r}, number {number} of its annotations: image_id"
    return integer(value.get("image_id"), what)


def _id_or_absent(value: Any) -> int:
    """An id; `ABSENT` for anything else, which the packing of the image refuses."""
    return value if type(value) is int and 0 <= value < 2**63 else ABSENT


def _check_unique(section: str, ids: list[int]) -> None:
    if twice := _twice(ids):
        numbers = listed(map(str, twice), len(twice))
        raise DataError(f"several of its {section} have the id {numbers}; give each its own")


def _twice(values: list[Any]) -> list[Any]:
    """The values that occur more than once, each once."""
    return [value for value, times in Counter(values).items() if times > 1]


def _grouped(images: list[int], of_image: np.ndarray) -> list[np.ndarray]:
    """The numbers of the annotations of each image, in the order of the file."""
    rows = np.argsort(of_image, kind="stable")
    ids = np.array(images, dtype=np.int64)
    starts = np.searchsorted(of_image[rows], ids, side="left")
    stops = np.searchsorted(of_image[rows], ids, side="right")
    return [rows[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
