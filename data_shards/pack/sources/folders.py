"""Image files in directories: `image_folder("data/imagenet")`, as torchvision's ImageFolder reads them."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_shards.errors import DataError
from data_shards.format.image_names import HIDDEN, is_hidden, is_image
from data_shards.format.samples import Source
from data_shards.pack.sources.file_samples import FileSamples, empty_classes
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.split_folders import SplitFolders, find_splits, one_split
from data_shards.pack.sources.walking import IMAGES, FileKind, Tree, Walk, is_directory, scan

BESIDE_CLASSES = "files beside the directories of the classes"


def image_folder(
    directory: str | Path | None,
    *,
    splits: Collection[str] | None = None,
    as_split: str | None = None,
    allow_empty: bool = False,
) -> Source:
    """DIRECTORY/SPLIT/CLASS/**/*.jpg (.jpeg, .png ...), SPLIT one of train, val, test; classes are sorted.

    A split may have another common name, such as valid. `splits` are listed, by default all. With `as_split`,
    it is DIRECTORY/CLASS/**/*.jpg, and all of it that split. Hidden files and links to what is listed already
    are left out; the notes of the source count them. A class without images in the first split is refused
    unless `allow_empty`.

    DataError: no such directory, no split with images in it, splits with different classes.
    """
    root = needed(directory, "folder", "the directory that holds train/CLASS/*.jpg and val/CLASS/*.jpg")
    found = labelled_folders(root, splits=splits, as_split=as_split, allow_empty=allow_empty)
    return Source("folder", "image folder", found.classes, found.samples, found.notes)


class LabelledFolders(NamedTuple):
    """What folders of classes hold: the classes, the files of each split, and notes on what was skipped."""

    classes: tuple[str, ...]
    samples: dict[str, FileSamples]
    notes: tuple[str, ...]


def labelled_folders(
    root: Path,
    *,
    splits: Collection[str] | None = None,
    as_split: str | None = None,
    allow_empty: bool = False,
    kind: FileKind = IMAGES,
) -> LabelledFolders:
    """The files of a `kind` below ROOT/SPLIT/CLASS; arguments and errors as those of `image_folder`."""
    folders_of = one_split(root, as_split) if as_split else find_splits(root)
    first = next(iter(folders_of.paths))
    wanted = _wanted(root, folders_of, splits)
    tree = Tree(map(str, folders_of.paths.values()))
    folders = {
        split: _Folder.of(folders_of.paths[split], tree, kind) for split in dict.fromkeys([first, *wanted])
    }
    classes = _classes(list(folders.values()))
    samples = {split: folders[split].samples(classes) for split in wanted}
    skipped = [note for split, folder in folders.items() for note in folder.walk.skipped.notes(split)]
    labels = {split: listed.labels for split, listed in samples.items()}
    try:
        empty = empty_classes(classes, labels, defining=first, allow_empty=allow_empty)
    except DataError as error:  # what was skipped may be the reason
        raise DataError("; ".join([f"{root}: {error}", *skipped])) from None
    notes = (*folders_of.notes, *skipped, *numbers_as_text(classes), *empty)
    return LabelledFolders(classes, samples, notes)


def _wanted(root: Path, folders_of: SplitFolders, splits: Collection[str] | None) -> list[str]:
    """The splits to list; DataError when one is not there."""
    if missing := [split for split in splits or () if split not in folders_of.paths]:
        raise DataError(f"--splits {missing[0]}: {root} holds {', '.join(folders_of.paths)}")
    return [split for split in folders_of.paths if splits is None or split in splits]


def needed(directory: str | Path | None, source: str, what: str) -> Path:
    """The directory that `source` cannot do without; DataError when it is not given or not there."""
    if directory is None:
        raise DataError(f"--source {source} needs --directory: {what}")
    if not Path(directory).is_dir():
        raise DataError(f"{directory}: no such directory; --directory must be {what}")
    return Path(directory)


def numbers_as_text(classes: tuple[str, ...]) -> tuple[str, ...]:
    """A note where classes are numbers whose order as text, which labels follow, is another: 10 before 2."""
    if not all(name.isascii() and name.isdigit() for name in classes):
        return ()
    for label, (name, number) in enumerate(zip(classes, sorted(classes, key=int), strict=True)):
        if name != number:
            text = "the names of the classes are numbers and are sorted as text, as torchvision sorts them"
            return (f"{text}: label {label} is class {name}, not class {number}",)
    return ()


@dataclass(frozen=True)
class _Folder:
    """The directory of a split, and its classes."""

    path: Path
    classes: tuple[str, ...]
    walk: Walk

    @classmethod
    def of(cls, path: Path, tree: Tree, kind: FileKind) -> "_Folder":
        """Find the classes of a split."""
        walk = Walk(str(path), tree, *kind)
        return cls(path, tuple(_class_names(path, walk)), walk)

    def samples(self, classes: tuple[str, ...]) -> FileSamples:
        """The images of the split, by class."""
        counts = np.zeros(len(classes), dtype=np.int64)

        def paths() -> Iterator[str]:
            above = len(str(self.path)) + 1
            for label, name in enumerate(classes):
                for path in self.walk.images(str(self.path / name)) if name in self.classes else ():
                    counts[label] += 1
                    yield path[above:]

        names = PathList.of(paths())
        labels = np.repeat(np.arange(len(classes), dtype=np.uint32), counts)
        return FileSamples(self.path, names, labels)


def _class_names(split: Path, walk: Walk) -> list[str]:
    """The directories of a split, sorted; `walk` counts what else is there."""
    names = [entry.name for entry in scan(str(split)) if _is_class(entry, walk)]
    if not names:
        fix = "move the split elsewhere, or leave it out of --splits"
        why = f"holds no directories, and each class must be one: {split}/CLASS/*.jpg; {fix}"
        raise DataError("; ".join([f"{split}: {why}", *walk.skipped.notes(split.name)]))
    return names


def _is_class(entry: "os.DirEntry[str]", walk: Walk) -> bool:
    if is_hidden(entry.name):
        walk.skipped.add(HIDDEN, entry.name)
        return False
    if is_directory(entry):
        return walk.is_new(entry.path)
    if entry.is_symlink() and not os.path.exists(entry.path) and not is_image(entry.name):
        target = os.readlink(entry.path)
        raise DataError(
            f"{entry.path}: links to {target}, which is not there; bring it back or remove the link"
        )
    walk.skipped.add(BESIDE_CLASSES, entry.name)
    return False


def _classes(folders: list[_Folder]) -> tuple[str, ...]:
    """The classes of the first split; DataError when another has one more."""
    classes, known = folders[0].classes, set(folders[0].classes)
    for folder in folders[1:]:
        if other := [name for name in folder.classes if name not in known]:
            fix = "all splits need one list of classes"
            raise DataError(f"{folder.path}: class {other[0]} is not in {folders[0].path}; {fix}")
    return classes
