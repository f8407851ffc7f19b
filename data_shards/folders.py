"""Image files in directories: `image_folder("data/imagenet")`, as torchvision's ImageFolder reads them."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.names import Names
from data_shards.samples import BadSourceError, Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
SPLITS = ("train", "val", "test")
STAT_THREADS, STAT_CHUNK = 16, 4096  # a network file system answers many at a time


@dataclass(frozen=True)
class FileSamples:
    """Samples that are files below `root`; labels (N,) uint32."""

    root: Path
    names: Names
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        path = self.root / self.names[i]
        try:
            body = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if not self.root.is_dir():
                raise DataError(
                    f"{self.root}: is gone; bring it back and run the same command again"
                ) from error
            raise BadSourceError(error.strerror) from error
        except OSError as error:
            fix = "see to it and run the same command again: finished shards are kept"
            raise DataError(f"{path}: cannot read it ({error.strerror}); {fix}") from error
        if not body:
            raise BadSourceError("empty file")
        return body, int(self.labels[i])

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
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            chunks = pool.map(self._sizes_from, range(0, len(self), STAT_CHUNK))
            return np.concatenate([np.zeros(0, dtype=np.int64), *chunks])

    def _sizes_from(self, start: int) -> np.ndarray:
        root = os.fspath(self.root)
        stop = min(start + STAT_CHUNK, len(self))
        return np.array([_size(f"{root}/{self.names[i]}") for i in range(start, stop)], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of paths and labels; what is in the files is not read for it."""
        sha = hashlib.sha256(self.labels.astype("<u4").tobytes())
        self.names.update(sha)
        return sha.hexdigest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot stat it ({error.strerror}); see to it and run it again") from error


def image_folder(directory: str | Path | None) -> Source:
    """DIRECTORY/SPLIT/CLASS/**/*.jpg (.jpeg, .png ...), SPLIT one of train, val, test; classes are sorted.

    DataError: no such directory, no split with images in it, splits with different classes.
    """
    root = needed(directory, "folder", "the directory that holds train/CLASS/*.jpg and val/CLASS/*.jpg")
    found = {split: _classes(root / split) for split in SPLITS if (root / split).is_dir()}
    if not found:
        raise DataError(
            f"{root}: holds none of {', '.join(s + '/' for s in SPLITS)}; --directory names their parent"
        )
    classes = next(iter(found.values()))
    for split, names in found.items():
        if other := sorted(set(names) - set(classes)):
            raise DataError(
                f"{root / split}: class {other[0]} is not in {root / next(iter(found))}; one list for all"
            )
    read = {split: _list(root, split, classes) for split in found}
    notes = tuple(note for _, note in read.values() if note)
    return Source("folder", "image folder", classes, {s: samples for s, (samples, _) in read.items()}, notes)


def needed(directory: str | Path | None, source: str, what: str) -> Path:
    """The directory that `source` cannot do without; DataError when it is not given or not there."""
    if directory is None:
        raise DataError(f"--source {source} needs --directory: {what}")
    if not Path(directory).is_dir():
        raise DataError(f"{directory}: no such directory; --directory must be {what}")
    return Path(directory)


def _classes(split: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in os.scandir(split) if entry.is_dir()))
    if not classes:
        raise DataError(f"{split}: holds no directories, and each class must be one: {split}/CLASS/*.jpg")
    return classes


def _list(root: Path, split: str, classes: tuple[str, ...]) -> tuple[FileSamples, str]:
    """The images of a split, and a note on the files that are none."""
    others: list[str] = []
    counts = np.zeros(len(classes), dtype=np.int64)

    def paths() -> Iterator[str]:
        above = len(str(root / split)) + 1
        for label, name in enumerate(classes):
            for path in _files(str(root / split / name)):
                if path.lower().endswith(SUFFIXES):
                    counts[label] += 1
                    yield path[above:]
                else:
                    others.append(path)

    names = Names.of(paths())
    labels = np.repeat(np.arange(len(classes), dtype=np.uint32), counts)
    note = f"{split}: {len(others)} files are no images by their names, {others[0]} say" if others else ""
    return FileSamples(root / split, names, labels), note


def _files(directory: str) -> Iterator[str]:
    """The files below a directory, links followed, in an order that only the names decide."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot list it ({error.strerror})") from error

    for parent, directories, files in os.walk(directory, onerror=refuse, followlinks=True):
        directories.sort()
        yield from (f"{parent}/{name}" for name in sorted(files))
