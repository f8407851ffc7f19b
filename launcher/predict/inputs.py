"""The images that a person names: files, folders, patterns, shards, a list on stdin; read when needed.

A task may take videos, or others, in the place of images: `Sought` says what is looked for.
"""

import glob
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_shards.errors import DataError
from data_shards.format.image_names import IMAGE_SUFFIXES
from data_shards.format.index import MANIFEST_NAME
from data_shards.pack.sources.walking import Tree, Walk
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.options import StreamOptions
from data_shards.stream.split import Split
from launcher.config.errors import ConfigError

STDIN = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """An image that is not read yet."""

    name: str  # its path, or SHARDS#POSITION
    read: Callable[[], bytes]  # raises DataError or OSError
    label: int | None = None  # of shards
    position: int = 0  # in its shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Sought:
    """What is looked for in folders and in shards."""

    member: str = "image"  # of shards
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES  # of files in folders, in lower case

    def accepts(self, name: str) -> bool:
        """Whether a file of a folder is such a one, by its name."""
        return name.lower().endswith(tuple(f".{suffix}" for suffix in self.suffixes))


def image_inputs(places: Iterable[str], sought: Sought | None = None) -> Generator[ImageInput]:
    """The images at some places, in their order.

    Args:
        places: a file; a folder, whose images are listed with those of all folders below; shards (a directory
            with a manifest.json); a pattern such as `photos/*.jpg`; or `-`, for such places a line on stdin.
        sought: what is looked for; None is images.

    Raises:
        ConfigError: there is nothing at a place.
    """
    sought = sought or Sought()
    for place in places:
        if place == STDIN:
            yield from image_inputs((line.rstrip("\n") for line in sys.stdin if line.strip()), sought)
        else:
            yield from _at(place, sought)


def _at(place: str, sought: Sought) -> Iterator[ImageInput]:
    path = Path(place)
    if (path / MANIFEST_NAME).is_file():
        yield from _of_shards(place, sought.member)
    elif path.is_dir():
        found = None
        for found in Walk(place, Tree([place]), sought.accepts).images(place):
            yield _of_file(found)
        if found is None:
            raise ConfigError(f"{place}: holds no {sought.member}s, and no {MANIFEST_NAME} of shards")
    elif path.exists() or path.is_symlink():
        yield _of_file(place)
    else:
        names = sorted(glob.glob(place, recursive=True))
        if not names:
            raise ConfigError(f"{place}: there is no such file, folder or pattern of files")
        for name in names:
            yield from _at(name, sought)


def _of_file(path: str) -> ImageInput:
    return ImageInput(name=path, read=Path(path).read_bytes)


def _of_shards(place: str, member: str) -> Iterator[ImageInput]:
    """The samples of a split in index order, with their labels."""
    options = StreamOptions()
    split = Split(place, (member,), options, Retries(options.read.deadline_s, Telemetry()))
    has_labels = any(field.name == "label" for field in split.manifest.fields)
    try:
        position = 0
        for shard, count in enumerate(split.manifest.samples_per_shard.tolist()):
            labels = split.reader.labels(shard).tolist() if has_labels else [None] * count
            for row, label in enumerate(labels):
                yield ImageInput(
                    name=f"{place}#{position}",
                    read=partial(_member, split, shard, row, member),
                    label=label,
                    position=position,
                )
                position += 1
    finally:
        split.close()


def _member(split: Split, shard: int, row: int, member: str) -> bytes:
    members = split.fetch(shard, row)
    if isinstance(members, DataError):
        raise members
    body = members[member]
    assert isinstance(body, bytes)
    return body
