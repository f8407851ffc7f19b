"""The image files below a directory: every real directory once, however many symbolic links lead to it.

Links are followed, so that a class may lie on another disk, except into what is listed anyway: a link to a
directory of the tree or to one that contains it, a second link to one directory outside, a link to an image
of the tree. Identity is the resolved path, since the inode numbers of network file systems may change.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from data_shards.errors import DataError
from data_shards.format.image_names import HIDDEN, Skipped, is_hidden, is_image
from data_shards.format.video_names import is_video

LINKED_DIRECTORIES = "links to directories that are listed already"
LINKED_FILES = "links to images that are listed already"


class FileKind(NamedTuple):
    """The files that are listed: whether a name is that of one, and what the others are called."""

    accepts: Callable[[str], bool]
    others: str


OTHER_FILES = "files without the suffix of an image"
IMAGES = FileKind(is_image, OTHER_FILES)
VIDEOS = FileKind(is_video, "files without the suffix of a video")


class Tree:
    """The directories below `tops` that are reached without a link: listed when the first link is met."""

    def __init__(self, tops: Iterable[str]) -> None:
        self._tops = [os.path.realpath(top) for top in tops]

    @cached_property
    def directories(self) -> frozenset[str]:
        """The resolved path of every one of them, hidden ones left out."""
        return frozenset(path for top in self._tops for path in _real_directories(top))

    def overlaps(self, real: str) -> bool:
        """Whether the resolved path of a directory is one of the tree's, or contains the tree."""
        above = real.rstrip("/") + "/"
        return real in self.directories or any(top.startswith(above) for top in self._tops)


class Walk:
    """A pass over one split: `images(directory)` lists, `skipped` counts what it leaves out.

    `top` is the split's directory; what is skipped is named by its path below it. `accepts` tells by its name
    whether a file is listed, and `others` is what those are called that are not.
    """

    def __init__(
        self, top: str, tree: Tree, accepts: Callable[[str], bool] = is_image, others: str = OTHER_FILES
    ) -> None:
        self._accepts, self._others = accepts, others
        self._top, self._real_top, self._tree = top, os.path.realpath(top), tree
        self._entered: set[str] = set()  # resolved paths of the directories that links led to
        self.skipped = Skipped()

    def is_new(self, path: str) -> bool:
        """Whether a directory is to be listed: False, and counted, for a link to what is listed already."""
        if not os.path.islink(path):
            return True
        real = os.path.realpath(path)
        if real in self._entered or self._tree.overlaps(real):
            self._skip_directory(path, real)
            return False
        self._entered.add(real)
        return True

    def images(self, directory: str) -> Iterator[str]:
        """The paths of the image files below `directory`: its files by name, then its directories by name."""
        yield from self._below(directory, os.path.realpath(directory), os.path.islink(directory))

    def _below(self, directory: str, real: str, outside: bool) -> Iterator[str]:
        """`real` is the resolved path of `directory`; `outside`: a link led here, out of the tree."""
        below = []
        for entry in scan(directory):
            if is_hidden(entry.name):
                self.skipped.add(HIDDEN, self._name(entry.path))
            elif is_directory(entry):
                below.append(entry)
            elif self._is_new_image(entry):
                yield entry.path
        for entry in below:
            link, inside = entry.is_symlink(), f"{real}/{entry.name}"
            if outside and not link:
                if inside in self._entered:
                    self._skip_directory(entry.path, inside)
                    continue
                self._entered.add(inside)
            if self.is_new(entry.path):
                inside = os.path.realpath(entry.path) if link else inside
                yield from self._below(entry.path, inside, outside or link)

    def _skip_directory(self, path: str, real: str) -> None:
        self.skipped.add(LINKED_DIRECTORIES, f"{self._name(path)} ({real})")

    def _is_new_image(self, entry: "os.DirEntry[str]") -> bool:
        if not self._accepts(entry.name):
            self.skipped.add(self._others, self._name(entry.path))
            return False
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            directory, _, name = target.rpartition("/")
            if (
                self._accepts(name)
                and not is_hidden(name)
                and self._lists(directory)
                and os.path.exists(target)
            ):
                self.skipped.add(LINKED_FILES, f"{self._name(entry.path)} ({target})")
                return False
        return True

    def _lists(self, directory: str) -> bool:
        """Whether a resolved directory is one whose files this split lists."""
        below = directory.startswith(f"{self._real_top}/")
        return directory in self._entered or (below and directory in self._tree.directories)

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._top}/")


def scan(directory: str) -> list["os.DirEntry[str]"]:
    """The entries of a directory, sorted by name; DataError when it cannot be listed."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot list it ({error.strerror}); see to it and run it again"
        ) from error


def is_directory(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a directory or a link to one; a link that leads to itself is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _real_directories(top: str) -> Iterator[str]:
    yield top
    for entry in scan(top):
        if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            yield from _real_directories(entry.path)
