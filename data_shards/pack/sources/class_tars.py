"""Images in uncompressed tars that are read where they are: one tar, or a tar with one tar for each class.

Only the headers are read to list them: of ImageNet-1K 1.3 million. N = samples.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_shards.errors import DataError
from data_shards.format.image_names import is_hidden, is_image
from data_shards.format.samples import BadSourceError
from data_shards.pack.sources.path_list import PathList


class Member(NamedTuple):
    """An image in a tar: its name, CLASS/NAME in the tar of a class, and its bytes from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarSamples:
    """Samples that are members of the tar `path`; labels (N,) uint32, offsets and lengths (N,) uint64."""

    path: Path
    names: PathList
    labels: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, path: Path, members: list[Member], labels: list[int]) -> "TarSamples":
        """The samples of some members, with their labels."""
        numbers = (
            np.array(column, dtype=np.uint64) for column in ([m[1] for m in members], [m[2] for m in members])
        )
        return cls(path, PathList.of(m.name for m in members), np.array(labels, dtype=np.uint32), *numbers)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _file(self) -> BinaryIO:
        return open(self.path, "rb", buffering=0)  # noqa: SIM115  closed with this object

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        size = int(self.lengths[i])
        try:
            body = os.pread(self._file.fileno(), size, int(self.offsets[i]))
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot read it ({error.strerror}); run the same command again"
            ) from error
        if not body or len(body) != size:
            raise BadSourceError("empty file" if not size else "the tar ends before it")
        return {"image": body, "label": int(self.labels[i])}

    def select(self, rows: np.ndarray) -> "TarSamples":
        """The samples at `rows`."""
        columns = (column[rows] for column in (self.labels, self.offsets, self.lengths))
        return TarSamples(self.path, self.names.select(rows), *columns)

    def describe(self, i: int) -> str:
        """The name inside the tar."""
        return f"{self.path.name}/{self.names[i]}"

    def label(self, i: int) -> int:
        """The label of sample i."""
        return int(self.labels[i])

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes, by the headers."""
        return self.lengths.astype(np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of names, labels and sizes; where they lie in the tar does not count."""
        sha = hashlib.sha256(self.labels.astype("<u4").tobytes())
        self.names.update(sha)
        sha.update(self.lengths.astype("<u8").tobytes())
        return sha.hexdigest()


def list_images(path: Path) -> list[Member]:
    """The images of a tar, by name.

    DataError: it is compressed, damaged or cut short.
    """
    with _opened(path) as tar:
        return sorted(_images(tar, path))


def list_class_tars(path: Path) -> dict[str, list[Member]]:
    """The images of every CLASS.tar in a tar, by name; classes sorted.

    DataError: it holds no such tars, or is compressed, damaged or cut short.
    """
    found: dict[str, list[Member]] = {}
    with _opened(path) as tar:
        for member in tar:
            name = os.path.basename(member.name)
            if member.isfile() and name.endswith(".tar") and not is_hidden(name):
                inner = tarfile.open(fileobj=tar.extractfile(member), mode="r:")  # noqa: SIM115  no file of its own
                images = _images(
                    inner, path, start=member.offset_data, folder=f"{name.removesuffix('.tar')}/"
                )
                found[name.removesuffix(".tar")] = sorted(images)
    if not found:
        raise DataError(f"{path}: holds no CLASS.tar; it must be a tar of one tar for each class")
    return dict(sorted(found.items()))


def _images(tar: tarfile.TarFile, path: Path, *, start: int = 0, folder: str = "") -> Iterator[Member]:
    """The images of an open tar that begins at `start` of the file."""
    end = os.path.getsize(path)
    for member in tar:
        name = os.path.basename(member.name)
        if member.isfile() and is_image(name) and not is_hidden(name):
            offset = start + member.offset_data
            if offset + member.size > end:
                raise tarfile.ReadError(f"{name} ends beyond it")
            yield Member(folder + name, offset, member.size)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """An uncompressed tar; whatever is wrong with it is a DataError."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path}: is no uncompressed tar, or is damaged or cut short ({error}); get it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); see to it and run it again") from error
