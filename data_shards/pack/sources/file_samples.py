"""Samples that are image files below one directory, and the number of images of every class."""

import errno
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.samples import BadSourceError
from data_shards.pack.sources.path_list import PathList

STAT_THREADS, STAT_CHUNK = 16, 4096  # a network file system answers many at a time
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class FileSamples:
    """Samples that are files below `root`; labels (N,) uint32."""

    root: Path
    names: PathList
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        return {"image": read_file(self.root, self.names[i]), "label": int(self.labels[i])}

    def select(self, rows: np.ndarray) -> "FileSamples":
        """The samples at `rows`."""
        return FileSamples(self.root, self.names.select(rows), self.labels[rows])

    def describe(self, i: int) -> str:
        """The path below `root`."""
        return self.names[i]

    def label(self, i: int) -> int:
        """The label of file i."""
        return int(self.labels[i])

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes, by one `stat` a file from many threads; 0 where there is none."""
        return file_sizes(self.root, self.names)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of paths and labels; what is in the files is not read for it."""
        sha = hashlib.sha256(self.labels.astype("<u4").tobytes())
        self.names.update(sha)
        return sha.hexdigest()


def read_file(root: Path, name: str) -> bytes:
    """The bytes of a file below `root`; BadSourceError when it is missing or empty, DataError by I/O."""
    path = root / name
    try:
        body = path.read_bytes()
    except OSError as error:
        if error.errno not in NOT_THERE:
            fix = "see to it and run the same command again: finished shards are kept"
            raise DataError(f"{path}: cannot read it ({error.strerror}); {fix}") from error
        if not root.is_dir():
            raise DataError(f"{root}: is gone; bring it back and run the same command again") from error
        raise BadSourceError(error.strerror) from error
    if not body:
        raise BadSourceError("empty file")
    return body


def file_sizes(root: Path, names: PathList) -> np.ndarray:
    """(N,) int64: bytes of files below `root`, by one `stat` each from many threads; 0 for a missing one."""

    def sizes_from(start: int) -> np.ndarray:
        stop = min(start + STAT_CHUNK, len(names))
        return np.array([_size(f"{os.fspath(root)}/{names[i]}") for i in range(start, stop)], dtype=np.int64)

    with ThreadPoolExecutor(STAT_THREADS) as pool:
        chunks = pool.map(sizes_from, range(0, len(names), STAT_CHUNK))
        return np.concatenate([np.zeros(0, dtype=np.int64), *chunks])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        if error.errno in NOT_THERE:
            return 0
        raise DataError(f"{path}: cannot stat it ({error.strerror}); see to it and run it again") from error


def empty_classes(
    classes: tuple[str, ...], labels: Mapping[str, np.ndarray], *, defining: str = "", allow_empty: bool
) -> tuple[str, ...]:
    """A note for every split that has no image of some class; `labels` are (N,) of each split.

    DataError when it is the split `defining`, whose classes the data set has, unless `allow_empty`. Another
    split may lack classes: people evaluate on images of a part of the classes.
    """
    notes = []
    for split, of_split in labels.items():
        counts = np.bincount(of_split, minlength=len(classes))
        empty = [classes[label] for label in np.flatnonzero(counts == 0).tolist()]
        if not empty:
            continue
        names = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        text = f"{split}: {len(empty)} of {len(classes)} classes have no images: {names}"
        if split == defining and not allow_empty:
            fix = "add images, remove the classes, or pass --allow-empty to keep them as classes"
            raise DataError(f"{text}; {fix}")
        notes.append(text)
    return tuple(notes)
