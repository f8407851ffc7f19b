"""ImageNet as Swin Transformer's own code has it on the disk: zipped (1K), or a folder with lists (22K)."""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from data_shards.errors import DataError
from data_shards.folders import FileSamples, needed
from data_shards.names import Names
from data_shards.samples import Source
from data_shards.zipped import ZipSamples, find_members, read_directory

SPLITS = ("train", "val")
MAP_22K = "ILSVRC2011fall_whole_map_{}.txt"
FOLDER_22K = "fall11_whole"
CHUNK = 2**22  # characters of a JSON list parsed at a time
MAX_LABEL = 2**24  # beyond it, it is a mistake and not a class


def imagenet_zip(directory: str | Path | None) -> Source:
    """DIRECTORY/{train,val}.zip with {train,val}_map.txt, lines of PATH, a tab and a label.

    The members are read where they are. DataError: files missing, a line that is none, a damaged archive.
    """
    root = needed(
        directory, "imagenet-zip", "the directory of train.zip, train_map.txt, val.zip, val_map.txt"
    )
    splits = {}
    for split in _present(root, "{}_map.txt"):
        names, labels = _collect(_map_lines(root / f"{split}_map.txt"))
        archive = root / f"{split}.zip"
        members, prefix = read_directory(archive), ""
        found = find_members(members, names)
        if (found["method"] == 65535).all():  # zipped together with its directory
            prefix = f"{split}/"
            found = find_members(members, names, prefix)
        splits[split] = ZipSamples(archive, prefix, names, labels, found)
    return Source("imagenet-zip", "zip archives with maps", class_names(splits.values()), splits)


def imagenet22k(directory: str | Path | None) -> Source:
    """DIRECTORY/ILSVRC2011fall_whole_map_{train,val}.txt, a JSON list of [path, label], over fall11_whole/.

    Paths count from DIRECTORY or from fall11_whole/, as the first of the list is found. DataError: files
    missing, a list that is none.
    """
    root = needed(directory, "imagenet22k", f"the directory of {MAP_22K.format('train')} and {FOLDER_22K}/")
    splits = {}
    for split in _present(root, MAP_22K):
        names, labels = _collect(_json_pairs(root / MAP_22K.format(split)))
        inside = not (root / names[0]).exists() and (root / FOLDER_22K).is_dir()
        splits[split] = FileSamples(root / FOLDER_22K if inside else root, names, labels)
    return Source("imagenet22k", "image files with JSON maps", class_names(splits.values()), splits)


def _present(root: Path, pattern: str) -> list[str]:
    splits = [split for split in SPLITS if (root / pattern.format(split)).is_file()]
    if not splits:
        raise DataError(f"{root}: holds no {pattern.format('train')}; --directory must be where it is")
    return splits


def _collect(pairs: Iterable[tuple[str, int]]) -> tuple[Names, np.ndarray]:
    """Paths and labels apart: N names and (N,) uint32."""
    labels = array("I")

    def paths() -> Iterator[str]:
        for path, label in pairs:
            labels.append(label)
            yield path.removeprefix("./")

    names = Names.of(paths())
    if not labels:
        raise DataError("the list of samples is empty; get it again")
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
            name, tab, label = line.rstrip("\r\n").rpartition("\t")
            if line.strip():
                if not (tab and name and re.fullmatch("[0-9]{1,8}", label)):
                    raise DataError(f"{path}: line {number} is not PATH, a tab and a label: {line[:80]!r}")
                yield name, _checked(int(label), f"{path}: line {number}")


def _checked(label: int, where: str) -> int:
    if not 0 <= label < MAX_LABEL:
        raise DataError(f"{where}: label {label} must be in 0 ... {MAX_LABEL - 1}")
    return label


def _json_pairs(path: Path, chunk: int = CHUNK) -> Iterator[tuple[str, int]]:
    """The pairs of a JSON list of [path, label], parsed piece by piece: whole, 14 million take 2.5 GB."""
    with _text(path) as file:
        for number, pair in enumerate(_json_items(path, file, chunk)):
            if not (
                isinstance(pair, list)
                and len(pair) == 2
                and isinstance(pair[0], str)
                and type(pair[1]) is int
            ):
                raise DataError(f"{path}: item {number} is not [path, label]: {str(pair)[:80]}")
            yield pair[0], _checked(pair[1], f"{path}: item {number}")


def _json_items(path: Path, file: TextIO, chunk: int) -> Iterator[object]:
    text = file.read(chunk).lstrip()
    if not text.startswith("["):
        raise DataError(f"{path}: is not a JSON list of [path, label]; get it again")
    text = text[1:]
    while more := file.read(chunk):
        items, text = _whole_items(text)
        yield from items
        text += more
    try:
        yield from json.loads("[" + text)
    except ValueError as error:
        raise DataError(f"{path}: is damaged or cut short near its end ({error}); get it again") from error


def _whole_items(text: str) -> tuple[list[object], str]:
    """The items that end inside `text`, and the rest; none yet when "]," was part of a path."""
    cut = text.rfind("],") + 1
    try:
        return (json.loads(f"[{text[:cut]}]"), text[cut + 1 :]) if cut else ([], text)
    except ValueError:
        return [], text


def class_names(splits: Iterable[FileSamples | ZipSamples]) -> tuple[str, ...]:
    """The directory of each class where its samples share one (ImageNet's wnid), otherwise its number."""
    found: dict[int, str] = {}
    count = 0
    for samples in splits:
        count = max(count, int(samples.labels.max()) + 1)
        for label, directory in _directories(samples).items():
            found.setdefault(label, directory)
    names = tuple(found.get(label, "") or str(label) for label in range(count))
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
