"""Right classes of images by file name, in the order of a split: the `images` of `eval --labels`.

A file of classes is one of three:

    {"ILSVRC2012_val_00000001.JPEG": [65], "b.jpg": 3, "c.jpg": ["n01440764", 7], "d.jpg": []}
    [[65], [795, 970], ...]                  of the images sorted by file name, as ReaL has it (real.json)
    ILSVRC2012_val_00000001.JPEG 65 970      a text: in each line a name and its classes, between spaces,
                                             commas or tabs

A class is a number or a name of the manifest. An image without any does not count.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from swin_moe.text_files import read_text


def images_by_name(
    path: Path, names: Sequence[str], left_out: Sequence[str], classes: Sequence[str]
) -> list[list[int]]:
    """The right classes of every image.

    Args:
        path: of the file.
        names: of the images in their source, paths with "/".
        left_out: names of images that were damaged when the split was packed. A list has them too.
        classes: of the split.

    Returns:
        Of every name the classes, as numbers.

    Raises:
        DataError: the file cannot be read, lacks an image, or has an unknown class or a name of two images.
    """
    content = _content(path)
    found = _in_order(path, content, [*names, *left_out]) if isinstance(content, list) else content
    labels = {name: label for label, name in enumerate(classes)}
    last_parts = _last_parts(path, names, found)
    given = [_given(path, found, name, last) for name, last in zip(names, last_parts, strict=True)]
    return [_numbers(path, name, value, labels) for name, value in zip(names, given, strict=True)]


def _content(path: Path) -> Any:
    """The list or the mapping in a file."""
    try:
        text = read_text(path)
        if text.lstrip().startswith(("{", "[")):
            return json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"--images {path}: cannot read it ({error})") from error
    return _lines(path, text)


def _lines(path: Path, text: str) -> dict[str, Any]:
    """The pairs of a text. Names and classes may hold spaces where tabs or commas are between them."""
    found: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        separator = next((mark for mark in ("\t", ",") if mark in line), None)
        name, *words = [word.strip() for word in line.strip().split(separator)] or [""]
        if name in found:
            raise DataError(f"--images {path}: line {number} names {name} a second time")
        if name:
            found[name] = [int(word) if word.isascii() and word.isdigit() else word for word in words if word]
    return found


def _in_order(path: Path, content: list[Any], names: Sequence[str]) -> dict[str, Any]:
    """A list of all images, sorted by file name, as a mapping."""
    ordered = sorted(names, key=lambda name: (name.rpartition("/")[2], name))
    if len(content) != len(ordered):
        raise DataError(f"--images {path}: has {len(content)} entries, and the split {len(ordered)} images")
    return dict(zip(ordered, content, strict=True))


def _last_parts(path: Path, names: Sequence[str], found: Mapping[str, Any]) -> list[str]:
    """What the file may call each image beside its path: its last part."""
    parts = [name.rpartition("/")[2] for name in names]
    twice = [part for part, times in Counter(parts).items() if times > 1 and part in found]
    if twice:
        raise DataError(f"--images {path}: {twice[0]} is the name of several images; write their paths")
    return parts


def _given(path: Path, found: Mapping[str, Any], name: str, last: str) -> Any:
    if name not in found and last not in found:
        raise DataError(f"--images {path}: lacks {name}; give an image that must not count an empty list")
    return found.get(name, found.get(last))


def _numbers(path: Path, name: str, value: Any, labels: Mapping[str, int]) -> list[int]:
    """The classes of an image as numbers."""
    right = []
    for item in value if isinstance(value, list) else [value]:
        number = labels.get(item) if isinstance(item, str) else item
        if type(number) is not int or not 0 <= number < len(labels):
            raise DataError(f"--images {path}: {name} has the class {item!r}, the split {len(labels)} others")
        right.append(number)
    return right
