"""The files beside the tars: `manifest.json` of a split, and one `.idx` file per shard.

<out>/train/manifest.json     name, classes, and of every shard its size and digests
<out>/train/000000.tar        a plain WebDataset tar
<out>/train/000000.idx        a record per sample (fields.py): offset, size, checksum of each member; numbers
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import (
    IMAGE_AND_LABEL,
    IMAGE_AND_OBJECTS,
    VIDEO_AND_LABEL,
    Field,
    check_fields,
)
from data_shards.format.records import record_of
from parallel.durable import atomic_write

SCHEMAS = (1, 2)  # 1: image and label, whose index is of version 1; 2: the manifest names its fields
MANIFEST_NAME = "manifest.json"
KNOWN = {  # of data sets by the name of their directory: the options that pack them
    "synthetic": "--source synthetic",
    "fashion-mnist": "--source fashion-mnist",
    "fashion-canvas": "--source fashion-canvas",
    "fashion-scenes": "--source fashion-scenes",
    "ade20k": "--source ade20k --directory ADEChallengeData2016",
    "coco": "--source coco --directory COCO",
    "moving-fashion": "--source moving-fashion",
    "kinetics400": "--source kinetics --directory kinetics400",
    "kinetics600": "--source kinetics --directory kinetics600",
    "something-something-v2": "--source something-something --directory something-something-v2",
}


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """The manifest's entry of a shard; `bytes` is the size of the tar."""

    name: str
    bytes: int
    samples: int
    sha256: str
    index_sha256: str

    @property
    def index_name(self) -> str:
        """The file name of the index, `000000.idx` for `000000.tar`."""
        return Path(self.name).with_suffix(".idx").name


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How the shards were written: enough to write them again, byte for byte, with the same JPEG library.

    A field with a default is written only when it differs, so that older manifests keep their digests.
    `samples_per_shard` is 0 where `bytes_per_shard` decides.
    """

    version: int
    seed: int
    quality: int
    samples_per_shard: int
    source: str
    source_digest: str
    bytes_per_shard: int = 0
    short_side: int = 0
    baseline: bool = False
    check: str = "decode"
    shuffle: bool = True
    image_sizes: bool = False


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One split of a data set; `digest` is its identity.

    `layout` is "packed" for tars as tar.py lays them out and "indexed" for those made by others.
    `bad_sources` samples were left out, and bad_sources.tsv lists them; `parent` is the digest of the
    manifest that `repair` or `split` made this one from. `fields` are the members of every sample. `classes`
    name the values of the field `label`, if there is one, or the labels of objects. `category_ids` are the
    ids that the classes have in the JSON of the source, for results in its terms; () where it has none.
    """

    schema: int
    name: str
    split: str
    samples: int
    classes: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    writer: Writer
    layout: str = "packed"
    bad_sources: int = 0
    parent: str = ""
    fields: tuple[Field, ...] = IMAGE_AND_LABEL
    category_ids: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the manifest's canonical JSON: keys sorted, no spaces."""
        return hashlib.sha256(canonical_json(self.to_dict()).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The contents of manifest.json: every field without a default, or with another value than it."""
        values = asdict(self) | {"classes": list(self.classes), "writer": _nondefault(self.writer)}
        values["fields"] = [_nondefault(field) for field in self.fields]
        values["category_ids"] = list(self.category_ids)
        return {key: values[key] for key in _nondefault(self)}

    def check_members(self, names: Sequence[str], where: str, reader: str = "") -> None:
        """DataError for a member that the samples of this split, called `where`, do not have.

        `reader` is what reads the members, for the message.
        """
        there = [field.name for field in self.fields]
        if missing := [name for name in names if name not in there]:
            of = f" that {reader} reads" if reader else ""
            fix = "pack or index the shards with it"
            raise DataError(
                f"{where}: its samples have no member {missing[0]!r}{of}, but {', '.join(there)}; {fix}"
            )

    def field(self, name: str) -> Field:
        """The member of a name that the samples have."""
        return next(field for field in self.fields if field.name == name)

    def save(self, directory: Path) -> None:
        """Write `directory`/manifest.json atomically."""
        atomic_write(directory / MANIFEST_NAME, json.dumps(self.to_dict(), indent=1).encode())

    @property
    def samples_per_shard(self) -> np.ndarray:
        """(shards,) int64: how many samples each shard holds."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @classmethod
    def load(cls, directory: str | Path, wanted: tuple[Field, ...] = IMAGE_AND_LABEL) -> "Manifest":
        """Read `directory`/manifest.json.

        Args:
            directory: of the split.
            wanted: the members that its samples should have, for messages.

        Raises:
            DataError: it is missing, damaged or of another schema.
        """
        path = Path(directory) / MANIFEST_NAME
        return cls.from_dict(read_json(path, wanted), path, wanted)

    @classmethod
    def from_dict(cls, values: Any, path: Path, wanted: tuple[Field, ...] = IMAGE_AND_LABEL) -> "Manifest":
        """Build a manifest from parsed JSON; `path` and `wanted` are only for the message of a DataError."""
        command = pack_command(path.parent, wanted)
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema not in SCHEMAS:
            known = " and ".join(map(str, SCHEMAS))
            raise DataError(
                f"{path}: schema is {schema!r}, this version reads {known}; pack again: {command}"
            )
        try:
            shards = tuple(ShardEntry(**shard) for shard in values["shards"])
            values = values | {"shards": shards, "writer": Writer(**values["writer"])}
            values |= {"fields": _fields(values.get("fields"))}
            values |= {"category_ids": _ids(values.get("category_ids", []), len(values["classes"]))}
            manifest = cls(**values | {"classes": _names(values["classes"])})
            total = sum(shard.samples for shard in shards)
            if schema != schema_of(manifest.fields):
                raise TypeError(f"schema {schema} with {len(manifest.fields)} fields")
        except (KeyError, TypeError, DataError) as error:
            raise DataError(f"{path}: not a manifest ({error}); pack again: {command}") from error
        if manifest.samples != total:
            raise DataError(f"{path}: samples ({manifest.samples}) must equal the sum over shards ({total})")
        if total == 0:
            raise DataError(f"{path}: the split holds no images; pack a source that has some: {command}")
        return manifest


def schema_of(fields: tuple[Field, ...]) -> int:
    """The schema of a manifest with these fields."""
    return 1 if fields == IMAGE_AND_LABEL else 2


def _fields(values: Any) -> tuple[Field, ...]:
    if values is None:
        return IMAGE_AND_LABEL
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise TypeError("fields must be a list of objects")
    if not all(isinstance(text, str) for value in values for text in value.values()):
        raise TypeError("a field is a name, a codec and an extension")
    fields = tuple(Field(**value) for value in values)
    check_fields(fields)
    return fields


def _names(classes: Any) -> tuple[str, ...]:
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes must be a list of names")
    return tuple(classes)


def _ids(ids: Any, classes: int) -> tuple[int, ...]:
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise TypeError("category_ids must be a list of integers")
    if ids and (len(ids) != classes or len(set(ids)) != classes):
        raise TypeError(f"category_ids must be {classes} different integers, one of each class")
    return tuple(ids)


def _nondefault(value: "Manifest | Writer | Field") -> dict[str, Any]:
    """The fields of a dataclass that have no default, or another value than it."""
    values = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        f.name: values[f.name] for f in fields(value) if f.default is MISSING or values[f.name] != f.default
    }


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def read_json(path: Path, wanted: tuple[Field, ...] = IMAGE_AND_LABEL) -> Any:
    """Parse a JSON file of a shard directory; DataError when it is missing or damaged.

    Args:
        path: of the file.
        wanted: the members that the samples should have, for messages.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(_missing(path, wanted)) from None
    except (OSError, ValueError) as error:
        command = pack_command(path.parent, wanted)
        raise DataError(f"{path}: cannot read it ({error}); delete it and pack again: {command}") from error


def pack_command(split: Path, wanted: tuple[Field, ...]) -> str:
    """A command that makes a split: of a data set that is known by its name, else of folders.

    Args:
        split: its directory.
        wanted: the members of its samples.
    """
    out = split.parent
    by_members: dict[tuple[Field, ...], str] = {
        IMAGE_AND_LABEL: "--source folder --directory IMAGES",
        IMAGE_AND_OBJECTS: KNOWN["coco"],
        VIDEO_AND_LABEL: "--source kinetics --directory VIDEOS",
    }
    options = KNOWN.get(out.name) or by_members.get(wanted)
    if options is None:
        members = (f"{one.name}={one.name}s:{one.codec}".removesuffix(f":{one.name}") for one in wanted)
        options = " --member ".join(["--source members --directory FOLDER", *members])
    return f"swin-moe shards pack {options} --out {out}"


def _missing(path: Path, wanted: tuple[Field, ...]) -> str:
    directory = path.parent
    if not directory.is_dir():
        command = pack_command(directory, wanted)
        return f"{directory}: no such directory; make the shards first, for example: {command}"
    splits = sorted(str(path.parent) for path in directory.glob(f"*/{MANIFEST_NAME}"))
    if splits:
        return f"{directory}: holds splits, not shards; name one of {', '.join(splits)}"
    command = pack_command(directory, wanted)
    return f"{directory}: no {MANIFEST_NAME}, so packing never finished here; run it (again): {command}"


def read_index(path: str | Path, fields: tuple[Field, ...] = IMAGE_AND_LABEL) -> np.ndarray:
    """Memory-map an index: (samples,) of `record_of(fields)`; DataError when its size does not fit."""
    record = record_of(fields)
    try:
        if Path(path).stat().st_size % record.itemsize == 0:
            return np.memmap(path, dtype=record, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read this index ({error}); pack the shards again") from error
    raise DataError(f"{path}: size must be a multiple of {record.itemsize} bytes; pack the shards again")


def digest_of(index: np.ndarray) -> str:
    """SHA-256, in hex, of the bytes of an index."""
    return hashlib.sha256(np.ascontiguousarray(index).view(np.uint8).data).hexdigest()


def check_shards(manifest: Manifest, directory: str | Path) -> None:
    """Check by `stat` alone that every shard and index is there in full; DataError names each that is not.

    Cheap enough for a login node: two system calls a shard, nothing is read.
    """
    problems, record = [], record_of(manifest.fields)
    for shard in manifest.shards:
        wanted = {shard.name: shard.bytes, shard.index_name: shard.samples * record.itemsize}
        problems += [p for name, size in wanted.items() if (p := _size_problem(Path(directory) / name, size))]
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        fix = "\nRun again the `swin-moe shards pack` that made them: it rewrites what is missing or damaged"
        raise DataError("shards are damaged:\n  " + "\n  ".join(problems[:5]) + more + fix)


def _size_problem(path: Path, expected: int) -> str | None:
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: {error.strerror}, expected {expected} bytes"
    return None if size == expected else f"{path}: expected {expected} bytes, found {size}"
