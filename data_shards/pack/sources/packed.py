"""Shards as a source: to shuffle tars made by others, change sizes or split off a set. N = samples."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from data_shards.errors import DataError
from data_shards.format.classes import differences
from data_shards.format.image_names import is_hidden
from data_shards.format.index import MANIFEST_NAME, RECORD, Manifest, read_index
from data_shards.format.samples import BadSourceError, Source
from data_shards.pack.sources.folders import needed


@dataclass(frozen=True)
class PackedSamples:
    """Samples in tars: tar (N,) uint32, which of `tars` in `directory` it is; records (N,) of RECORD."""

    directory: Path
    tars: tuple[str, ...]
    tar: np.ndarray
    records: np.ndarray

    def __len__(self) -> int:
        return len(self.tar)

    @cached_property
    def _files(self) -> "_OpenFiles":
        return _OpenFiles()

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        offset, size, label, checksum = self.records[i].item()
        path = self.directory / self.tars[self.tar[i]]
        try:
            body = os.pread(self._files.handle(path), size, offset)
        except FileNotFoundError as error:
            raise BadSourceError(f"{path.name} is not there") from error
        except OSError as error:
            raise DataError(
                f"{path}: cannot read it ({error.strerror}); run the same command again"
            ) from error
        if xxhash.xxh3_64_intdigest(body) != checksum:
            raise BadSourceError("checksum differs from the index")
        return body, label

    def select(self, rows: np.ndarray) -> "PackedSamples":
        """The samples at `rows`, with no tar that they do not need."""
        used, tar = np.unique(self.tar[rows], return_inverse=True)
        tars = tuple(self.tars[i] for i in used.tolist())
        return PackedSamples(self.directory, tars, tar.astype(np.uint32), self.records[rows])

    def describe(self, i: int) -> str:
        """Its tar and its offset there."""
        return f"{self.tars[self.tar[i]]} at byte {self.records[i]['offset']}"

    def label(self, i: int) -> int:
        """The label of sample i."""
        return int(self.records[i]["label"])

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of each image."""
        return self.records["size"].astype(np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of every image's size, label and checksum, in order."""
        sha = hashlib.sha256()
        for field in ("size", "label", "xxh3"):
            sha.update(np.ascontiguousarray(self.records[field]).data)
        return sha.hexdigest()


class _OpenFiles:
    """The tars that are open, one at a time: samples come sorted by tar, or the price is an open each."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.descriptor = -1

    def handle(self, path: Path) -> int:
        """A descriptor of `path`."""
        if path != self.path:
            self.close()
            self.descriptor, self.path = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
        return self.descriptor

    def close(self) -> None:
        """Close what is open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self.path = -1, None

    def __del__(self) -> None:
        self.close()


def packed_samples(directory: Path, manifest: Manifest) -> PackedSamples:
    """Every sample of a split, in its order: 28 bytes each; DataError when an index is not the manifest's."""
    records = []
    for entry in manifest.shards:
        index = read_index(directory / entry.index_name)
        if hashlib.sha256(index.data).hexdigest() != entry.index_sha256:
            raise DataError(
                f"{directory / entry.index_name}: is not the index in the manifest; repair it first"
            )
        records.append(index)
    tar = np.repeat(np.arange(len(records), dtype=np.uint32), manifest.samples_per_shard)
    tars = tuple(entry.name for entry in manifest.shards)
    return PackedSamples(directory, tars, tar, np.concatenate([np.zeros(0, dtype=RECORD), *records]))


def packed_source(directory: str | Path | None) -> Source:
    """The splits below DIRECTORY, or DIRECTORY itself if it is one, packed or indexed, to be packed anew."""
    root = needed(directory, "shards", "a directory of shards with a manifest.json, or of such splits")
    below = [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    manifests = _manifests([root, *sorted(below)])
    if not manifests:
        raise DataError(f"{root}: holds no {MANIFEST_NAME}; make one with: swin-moe shards index {root}")
    (first, classes), *others = ((path, manifest.classes) for path, manifest in manifests.items())
    for path, names in others:
        if different := differences(names, classes):
            raise DataError(
                f"{path} must have the classes of {first}: {different}; name one split as --directory"
            )
    paths: dict[str, Path] = {}
    for path, manifest in manifests.items():
        if (same := paths.setdefault(manifest.split, path)) != path:
            raise DataError(f"{same} and {path} are both the split {manifest.split}; pass one as --directory")
    splits = {manifest.split: packed_samples(path, manifest) for path, manifest in manifests.items()}
    name = next(iter(manifests.values())).name
    return Source(name, f"shards of {name}", classes, splits)


def _manifests(paths: Iterable[Path]) -> dict[Path, Manifest]:
    return {path: Manifest.load(path) for path in paths if (path / MANIFEST_NAME).is_file()}
