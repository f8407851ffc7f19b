"""Shards as a source: to shuffle tars made by others, change sizes or split off a set. N = samples."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_shards.errors import DataError
from data_shards.format.classes import differences
from data_shards.format.fields import IMAGE_AND_LABEL, Field, files_of, has_label
from data_shards.format.image_names import is_hidden
from data_shards.format.index import MANIFEST_NAME, Manifest, digest_of, read_index
from data_shards.format.records import record_of
from data_shards.format.samples import BadSourceError, Source
from data_shards.pack.sources.folders import needed


@dataclass(frozen=True)
class PackedSamples:
    """Samples in tars: tar (N,) uint32, which of `tars` in `directory` it is; records (N,) of `fields`."""

    directory: Path
    tars: tuple[str, ...]
    tar: np.ndarray
    records: np.ndarray
    fields: tuple[Field, ...] = IMAGE_AND_LABEL

    def __len__(self) -> int:
        return len(self.tar)

    @cached_property
    def _files(self) -> "_OpenFiles":
        return _OpenFiles()

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        path = self.directory / self.tars[self.tar[i]]
        record = zip(self.fields, self.records[i].item(), strict=True)
        return {
            field.name: value if field.is_scalar else self._read(path, field, *value)
            for field, value in record
        }

    def _read(self, path: Path, field: Field, offset: int, size: int, checksum: int) -> bytes:
        try:
            body = os.pread(self._files.handle(path), size, offset)
        except FileNotFoundError as error:
            raise BadSourceError(f"{path.name} is not there") from error
        except OSError as error:
            raise DataError(
                f"{path}: cannot read it ({error.strerror}); run the same command again"
            ) from error
        if xxhash.xxh3_64_intdigest(body) != checksum:
            raise BadSourceError(field.reason("checksum differs from the index"))
        return body

    def select(self, rows: np.ndarray) -> "PackedSamples":
        """The samples at `rows`, with no tar that they do not need."""
        used, tar = np.unique(self.tar[rows], return_inverse=True)
        tars = tuple(self.tars[i] for i in used.tolist())
        return PackedSamples(self.directory, tars, tar.astype(np.uint32), self.records[rows], self.fields)

    def describe(self, i: int) -> str:
        """Its tar and its offset there."""
        first = files_of(self.fields)[0].name
        return f"{self.tars[self.tar[i]]} at byte {self.records[i][first]['offset']}"

    def label(self, i: int) -> int:
        """The label of sample i, or -1."""
        return int(self.records[i]["label"]) if has_label(self.fields) else -1

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the files of each sample."""
        total = np.zeros(len(self), dtype=np.int64)
        for field in files_of(self.fields):
            total += self.records[field.name]["size"]
        return total

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the sizes of all files, all numbers, the checksums of all files, in order."""
        sha, files = hashlib.sha256(), files_of(self.fields)
        columns = [self.records[field.name]["size"] for field in files]
        columns += [self.records[field.name] for field in self.fields if field.is_scalar]
        columns += [self.records[field.name]["xxh3"] for field in files]
        for column in columns:
            sha.update(np.ascontiguousarray(column).data)
        if self.fields != IMAGE_AND_LABEL:
            sha.update(repr([(field.name, field.codec) for field in self.fields]).encode())
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
        index = read_index(directory / entry.index_name, manifest.fields)
        if digest_of(index) != entry.index_sha256:
            raise DataError(
                f"{directory / entry.index_name}: is not the index in the manifest; repair it first"
            )
        records.append(index)
    tar = np.repeat(np.arange(len(records), dtype=np.uint32), manifest.samples_per_shard)
    tars = tuple(entry.name for entry in manifest.shards)
    none = np.zeros(0, dtype=record_of(manifest.fields))
    return PackedSamples(directory, tars, tar, np.concatenate([none, *records]), manifest.fields)


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
        if own_names(manifests[path].fields) != own_names(manifests[first].fields):
            raise DataError(f"{path} must have the members of {first}; name one split as --directory")
        if manifests[path].category_ids != manifests[first].category_ids:
            raise DataError(f"{path} must have the category ids of {first}; name one split as --directory")
    paths: dict[str, Path] = {}
    for path, manifest in manifests.items():
        if (same := paths.setdefault(manifest.split, path)) != path:
            raise DataError(f"{same} and {path} are both the split {manifest.split}; pass one as --directory")
    splits = {manifest.split: packed_samples(path, manifest) for path, manifest in manifests.items()}
    one = next(iter(manifests.values()))
    description, fields, ids = f"shards of {one.name}", own_names(one.fields), one.category_ids
    return Source(one.name, description, classes, splits, fields=fields, category_ids=ids)


def own_names(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The fields without the extensions that their files have in the tars of somebody else."""
    return tuple(Field(field.name, field.codec) for field in fields)


def _manifests(paths: Iterable[Path]) -> dict[Path, Manifest]:
    return {path: Manifest.load(path) for path in paths if (path / MANIFEST_NAME).is_file()}
