"""ImageNet in the layout of Swin Transformer's code: zip archives (1K), or a folder with lists (22K)."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np

from data_shards.errors import DataError
from data_shards.format.image_names import HIDDEN, Skipped, is_hidden
from data_shards.format.labels import parse_label
from data_shards.format.samples import Source
from data_shards.pack.sources.file_samples import FileSamples, empty_classes
from data_shards.pack.sources.folders import image_folder, needed
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.split_folders import ALIASES
from data_shards.pack.sources.zipped import ZipSamples, zip_samples

SPLITS = ("train", "val")
MAP_22K = "ILSVRC2011fall_whole_map_{}.txt"
FOLDER_22K = "fall11_whole"
FOLDERS_22K = (FOLDER_22K, "winter21_whole")
CHUNK = 2**22  # characters of a JSON list parsed at a time
MAX_LABEL = 2**24  # beyond it, it is a mistake and not a class


def imagenet_zip(directory: str | Path | None, *, allow_empty: bool = False) -> Source:
    """DIRECTORY/{train,val}.zip with {train,val}_map.txt, lines of PATH, a tab and a label.

    The members are read where they are. A label that no image of the first split has is refused unless
    `allow_empty`. DataError: files missing, a line that is none, a damaged archive, one with none of the
    names in the map, or one whose members are compressed in another way than by deflate.
    """
    root = needed(
        directory, "imagenet-zip", "the directory of train.zip, train_map.txt, val.zip, val_map.txt"
    )
    splits, skipped = {}, Skipped()
    lists = _present(root, "{}_map.txt")
    for split, name in lists.items():
        path, archive = root / f"{name}_map.txt", root / f"{name}.zip"
        names, labels = _collect(path, _map_lines(path), skipped)
        splits[split] = zip_samples(archive, path, name, names, labels)
    notes = [*_renamed(root, lists), *skipped.notes(str(root))]
    return _source("imagenet-zip", "zip archives with maps", splits, notes, root, allow_empty)


def imagenet22k(directory: str | Path | None, *, allow_empty: bool = False) -> Source:
    """DIRECTORY/ILSVRC2011fall_whole_map_{train,val}.txt, a JSON list of [path, label], over fall11_whole/.

    Paths count from DIRECTORY or from fall11_whole/, whichever has the first of the list. Without the lists,
    the folders in fall11_whole/, winter21_whole/ or DIRECTORY are the classes, and all images are train. A
    label that no image of the first split has is refused unless `allow_empty`. DataError: no images, a list
    that is none.
    """
    root = needed(directory, "imagenet22k", f"the directory of {MAP_22K.format('train')} and {FOLDER_22K}/")
    splits, skipped = {}, Skipped()
    lists = _lists(root, MAP_22K)
    if not lists:
        return _without_lists(root, allow_empty)
    for split, name in lists.items():
        path = root / MAP_22K.format(name)
        names, labels = _collect(path, _json_pairs(path), skipped)
        inside = not (root / names[0]).exists() and (root / FOLDER_22K).is_dir()
        splits[split] = FileSamples(root / FOLDER_22K if inside else root, names, labels)
    notes = [*_renamed(root, lists), *skipped.notes(str(root))]
    return _source("imagenet22k", "image files with JSON maps", splits, notes, root, allow_empty)


def _without_lists(root: Path, allow_empty: bool) -> Source:
    """ImageNet-22K as it is downloaded today, or any part of it: FOLDER/WNID/*.JPEG, one split."""
    folder = next((root / name for name in FOLDERS_22K if (root / name).is_dir()), root)
    try:
        source = image_folder(folder, as_split="train", allow_empty=allow_empty)
    except DataError as error:
        raise DataError(
            f"{root}: holds no {MAP_22K.format('train')}, and no classes in folders: {error}"
        ) from None
    note = (
        f"{root}: no {MAP_22K.format('train')}: classes from folder names, all images in train; "
        "swin-moe shards split makes a validation set of it"
    )
    return replace(source, name="imagenet22k", notes=(note, *source.notes))


def _source(
    name: str,
    description: str,
    splits: Mapping[str, FileSamples] | Mapping[str, ZipSamples],
    notes: list[str],
    root: Path,
    allow_empty: bool,
) -> Source:
    classes = class_names(splits.values())
    labels = {split: samples.labels for split, samples in splits.items()}
    try:
        empty = empty_classes(classes, labels, defining=next(iter(splits)), allow_empty=allow_empty)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    return Source(name, description, classes, splits, (*notes, *empty))


def _present(root: Path, pattern: str) -> dict[str, str]:
    """`_lists`; DataError when there is none."""
    lists = _lists(root, pattern)
    if not lists:
        raise DataError(f"{root}: holds no {pattern.format('train')}; --directory must be where it is")
    return lists


def _lists(root: Path, pattern: str) -> dict[str, str]:
    """The name that every split has in the lists that are there, such as val: validation."""
    lists = {}
    for split in SPLITS:
        there = [name for name in ALIASES[split] if (root / pattern.format(name)).is_file()]
        if len(there) > 1:
            both = " and ".join(pattern.format(name) for name in there[:2])
            raise DataError(f"{root}: {both} are both the split {split}; move one elsewhere")
        if there:
            lists[split] = there[0]
    return lists


def _renamed(root: Path, lists: Mapping[str, str]) -> list[str]:
    return [
        f"{root}: the list of {name} is used as the split {split}"
        for split, name in lists.items()
        if name != split
    ]


def _collect(path: Path, pairs: Iterable[tuple[str, int]], skipped: Skipped) -> tuple[PathList, np.ndarray]:
    """Paths and labels apart: N names and (N,) uint32; hidden files are counted and left out."""
    labels = array("I")

    def paths() -> Iterator[str]:
        for name, label in pairs:
            if is_hidden(name):
                skipped.add(HIDDEN, name)
                continue
            labels.append(label)
            yield name.removeprefix("./")

    names = PathList.of(paths())
    if not labels:
        raise DataError(f"{path}: the list of samples is empty; get it again")
    return names, np.frombuffer(labels, dtype=np.uint32)


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """An open file of UTF-8 text, with or without a byte order mark; DataError in another encoding."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _map_lines(path: Path) -> Iterator[tuple[str, int]]:
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            name, _, text = line.rstrip("\r\n").rpartition("\t")
            if line.strip():
                label = _number(text)
                if not name or label is None:
                    raise DataError(f"{path}: line {number} is not PATH, a tab and a label: {line[:80]!r}")
                yield name, _checked(label, f"{path}: line {number}")


def _number(text: str) -> int | None:
    try:
        label = parse_label(text)
    except ValueError:
        return None
    return label if isinstance(label, int) else None


def _checked(label: int, where: str) -> int:
    if not 0 <= label < MAX_LABEL:
        raise DataError(f"{where}: label {label} must be in 0 ... {MAX_LABEL - 1}")
    return label


def _json_pairs(path: Path, chunk: int = CHUNK) -> Iterator[tuple[str, int]]:
    """The pairs of a JSON list of [path, label], parsed piece by piece: whole, 14 million take 2.5 GB."""
    with _text(path) as file:
        for number, pair in enumerate(json_items(path, file, chunk)):
            name, label = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            label = _integer(label)
            if not isinstance(name, str) or label is None:
                raise DataError(f"{path}: item {number} is not [path, label]: {str(pair)[:80]}")
            yield name, _checked(label, f"{path}: item {number}")


def _integer(value: object) -> int | None:
    """The label in a JSON number, 3 or 3.0; None for any other value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def json_items(path: Path, file: TextIO, chunk: int) -> Iterator[object]:
    text = file.read(chunk).lstrip()
    if not text.startswith("["):
        raise DataError(f"{path}: is not a JSON list of [path, label]; get it again")
    text = text[1:]
    while more := file.read(chunk):
        items, text = _complete_items(text)
        yield from items
        text += more
    try:
        yield from json.loads("[" + text)
    except ValueError as error:
        raise DataError(f"{path}: is damaged or cut short near its end ({error}); get it again") from error


def _complete_items(text: str) -> tuple[list[object], str]:
    """The items that end inside `text`, and the rest; none yet when "]," was part of a path."""
    cut = text.rfind("],") + 1
    try:
        return (json.loads(f"[{text[:cut]}]"), text[cut + 1 :]) if cut else ([], text)
    except ValueError:
        return [], text


def class_names(splits: Iterable[FileSamples | ZipSamples]) -> tuple[str, ...]:
    """The directory of each class where its samples share one (ImageNet's wnid), otherwise its number."""
    shared: dict[int, str] = {}
    count = 0
    for samples in splits:
        count = max(count, int(samples.labels.max()) + 1)
        for label, directory in _directories(samples).items():
            shared.setdefault(label, directory)
    names = tuple(shared.get(label, "") or str(label) for label in range(count))
    return names if len(set(names)) == count else tuple(str(label) for label in range(count))


def _directories(samples: FileSamples | ZipSamples) -> Mapping[int, str]:
    """The last directory of the samples of each label that has one only."""
    pairs = np.unique(samples.labels.astype(np.uint64) << np.uint64(32) | samples.names.directory_ids)
    labels, ids = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(2**32 - 1)).astype(np.int64)
    alone = np.bincount(labels)[labels] == 1
    names = samples.names.directories
    return {
        label: names[i].rstrip("/").rpartition("/")[2]
        for label, i in zip(labels[alone].tolist(), ids[alone].tolist(), strict=True)
    }
