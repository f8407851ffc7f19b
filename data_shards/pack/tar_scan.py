"""Scan a tar made by others for its samples: KEY.jpg with KEY.cls, .json or .txt, or any other members.

A key is a member's name up to the first dot of its last part, as in the webdataset library; the rest is its
extension (tar_members.py). The members of a key may be anywhere in the tar. A hard link refers to the member
that it names. Symbolic links are not followed: they may lead out of the tar.
"""

import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_shards.codecs.registry import codec_of
from data_shards.errors import DataError
from data_shards.format.check import BadSample
from data_shards.format.fields import (
    IMAGE_AND_LABEL,
    SIZES,
    Field,
    files_of,
    split_name,
)
from data_shards.format.file_kinds import COMPRESSED, HEAD_BYTES, kind_of
from data_shards.format.image_names import HIDDEN, IMAGE_SUFFIXES, Skipped, is_hidden
from data_shards.format.labels import Label, WrongLabelError, json_label, label_text, parse_label
from data_shards.format.records import record_of
from data_shards.format.samples import BadSource, BadSourceError
from data_shards.format.tar import MAX_BODY
from data_shards.pack.members import prepare_members, sizes_of
from data_shards.pack.reencode import Recipe
from data_shards.pack.tar_members import LABELS, NO_IMAGE, NO_LABEL, Extensions, Group, TarMember

MAX_LABEL_BYTES = 2**20
PIECE = 2**20  # bytes read at a time
FIX = "get it again, or move it out of the directory"
UNKNOWN = "members whose suffix is of no image and no label"
UNCLAIMED = "members that belong to no field"
PACKED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
DOTTED = "members with a dot in their key, as a key ends at the first dot"


@dataclass(frozen=True)
class ScanJob:
    """A tar to read; `label_key` is where a .json that is an object has its label.

    With `image_sizes`, the fields height and width are those of the images, and no members.
    """

    path: Path
    label_key: str = "label"
    check: str = "decode"
    fields: tuple[Field, ...] = IMAGE_AND_LABEL
    image_sizes: bool = False

    @property
    def members(self) -> tuple[Field, ...]:
        """The fields that are members of the tar."""
        return tuple(item for item in self.fields if not (self.image_sizes and item in SIZES))


@dataclass(frozen=True)
class Scan:
    """What a tar holds: index (samples,) of `record_of(fields)`, whose labels are indices into `labels`.

    `named` is the member that first had each of the labels. `bad` are keys without a member that
    can be used, `skipped` the members that belong to no key.
    """

    index: np.ndarray
    labels: tuple[Label, ...]
    named: tuple[str, ...]
    bad: tuple[BadSample, ...]
    skipped: Skipped


def scan_tar(job: ScanJob) -> Scan:
    """Read a tar from end to end; DataError where its structure is damaged, since more may be lost there."""
    head = b""
    try:
        with open(job.path, "rb") as file:
            head = os.pread(file.fileno(), HEAD_BYTES, 0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                groups, skipped = _group(job, tar)
                _check_end(job.path, file.fileno(), tar.offset)
                return _Scanner(job, file.fileno()).scan(groups, skipped)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{job.path}: {_not_a_tar(head, error)}") from error
    except OSError as error:
        raise DataError(
            f"{job.path}: cannot read it ({error.strerror}); see to it and run it again"
        ) from error


def _not_a_tar(head: bytes, error: Exception) -> str:
    kind = kind_of(head)
    if kind in ("", "a tar"):
        return f"not a tar that can be indexed ({error}); {FIX}"
    if kind in COMPRESSED:
        return f"is {kind}, and an index points into the tar itself; unpack it first"
    return f"is {kind}, not a tar; {FIX}"


def _group(job: ScanJob, tar: tarfile.TarFile) -> tuple[dict[str, Group], Skipped]:
    """The members by key, in the order of the first of each, and what belongs to no key."""
    groups: dict[str, Group] = {}
    skipped, extensions = Skipped(), Extensions(job.members)
    stored: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        part = _member(member, stored)
        key, extension = split_name(member.name)
        if member.isdir():
            continue
        if kind := _unusable(member.name, extension, extensions, job.fields):
            skipped.add(kind, f"{job.path.name}: {member.name}")
            continue
        group, name = groups.setdefault(key, Group()), extensions.field_of(extension)
        if not group.add(name, extension, part):
            which = "of its kind" if job.fields == IMAGE_AND_LABEL else f"for {name}"
            raise DataError(
                f"{job.path}: key {key} has two {which}, {member.name} is the second; {_which(job)}"
            )
    return groups, skipped


def _which(job: ScanJob) -> str:
    if job.fields == IMAGE_AND_LABEL:
        return FIX
    return f"say which is which (--member NAME=EXTENSION:CODEC), or {FIX}"


def _member(member: tarfile.TarInfo, stored: dict[str, tarfile.TarInfo]) -> TarMember:
    """Where the bytes of a member lie; `stored` has the earlier members with bytes, and gets this one."""
    body: tarfile.TarInfo | None = member
    problem = ""
    if member.islnk():
        body = stored.get(_plain(member.linkname))
        problem = "" if body else f"is a hard link to {member.linkname}, which is not before it in this tar"
    elif member.issym():
        problem = f"is a symbolic link to {member.linkname}; write the tar with --dereference"
    elif not member.isreg() or member.issparse():
        problem = "is a sparse file or no file; write the tar without --sparse"
    if problem or body is None:
        return TarMember(member.name, 0, 0, problem)
    stored[_plain(member.name)] = body
    return TarMember(member.name, body.offset_data, body.size)


def _plain(name: str) -> str:
    """A member's name without "./" and doubled slashes, as a hard link may have it otherwise."""
    return posixpath.normpath(name.lstrip("/"))


def _unusable(name: str, extension: str, extensions: Extensions, fields: Sequence[Field]) -> str:
    """The kind of members that belong to no key, "" for those that do."""
    if is_hidden(name):
        return HIDDEN
    if extensions.field_of(extension):
        return ""
    if tuple(fields) != IMAGE_AND_LABEL:
        return UNCLAIMED
    return DOTTED if extensions.field_of(extension.rpartition(".")[2]) else UNKNOWN


def _check_end(path: Path, handle: int, at: int) -> None:
    """DataError where tarfile stopped silently at a damaged header: no zeros of an end follow it."""
    size = os.fstat(handle).st_size
    if at > size:
        raise DataError(f"{path}: is cut short: {size} bytes, and its last member goes on to {at}; {FIX}")
    while rest := os.pread(handle, PIECE, at):
        if rest.count(0) != len(rest):
            near = at + len(rest) - len(rest.lstrip(b"\x00"))
            raise DataError(
                f"{path}: damaged header, or data after the end of the archive, at byte {near}; "
                f"what follows is lost to every reader; {FIX}"
            )
        at += len(rest)


class _Scanner:
    """One pass over the samples of a tar."""

    def __init__(self, job: ScanJob, handle: int) -> None:
        self.job, self.handle = job, handle
        self.label_ids: dict[Label, int] = {}
        self.named: list[str] = []
        self.recipe = Recipe(check=job.check)
        self.extensions = Extensions(job.members)

    def scan(self, groups: dict[str, Group], skipped: Skipped) -> Scan:
        """Index every key that has all members; the others are bad."""
        rows, bad = [], []
        for key, group in groups.items():
            try:
                rows.append(self._record(group))
            except ValueError as error:  # BadSourceError among them
                if isinstance(error, DataError) and not isinstance(error, BadSourceError):
                    raise
                bad.append(BadSample(self.job.path.name, key, " ".join(str(error).split())))
        index = np.array(rows, dtype=record_of(self.job.fields))
        index = index[np.argsort(index[files_of(self.job.fields)[0].name]["offset"], kind="stable")]
        return Scan(index, tuple(self.label_ids), tuple(self.named), tuple(bad), skipped)

    def _record(self, group: Group) -> tuple[Any, ...]:
        if lacks := group.lacks(self.job.members, self.extensions):
            raise ValueError(lacks)
        parts = {item.name: part for item in self.job.members if (part := group.part(item.name))}
        label, values = None, {}
        for item in self.job.members:
            if item.is_scalar and item.name == "label":
                label = self._label(parts["label"])
            elif item.is_scalar:
                values[item.name] = self._number(item, parts[item.name])
        files = files_of(self.job.members)
        bodies = {item.name: self._read(parts[item.name]) for item in files}
        prepare_members(bodies, files, self.recipe)
        if self.job.image_sizes:
            values |= sizes_of(bodies["image"])
        if label is not None:
            if label not in self.label_ids:
                self.named.append(f"{self.job.path.name}: {parts['label'].name}")
            values["label"] = self.label_ids.setdefault(label, len(self.label_ids))
        places = {
            name: (parts[name].offset, len(body), xxhash.xxh3_64_intdigest(body))
            for name, body in bodies.items()
        }
        return tuple((values | places)[item.name] for item in self.job.fields)

    def _number(self, item: Field, part: TarMember) -> int:
        if part.size > MAX_LABEL_BYTES:
            raise ValueError(f"{part.name} has {part.size} bytes, too many for a number")
        try:
            return int(codec_of(item).decode(self._read(part)))
        except DataError as error:
            raise BadSourceError(f"{part.name}: {error}") from error

    def _read(self, part: TarMember) -> bytes:
        if part.problem:
            raise ValueError(f"{part.name} {part.problem}")
        if not 0 < part.size <= MAX_BODY:
            raise ValueError(f"{part.name} has {part.size} bytes")
        return os.pread(self.handle, part.size, part.offset)

    def _label(self, part: TarMember) -> Label:
        if part.size > MAX_LABEL_BYTES:
            raise ValueError(f"{part.name} has {part.size} bytes, too many for a label")
        text = label_text(self._read(part))
        try:
            is_json = part.name.lower().endswith(".json")
            return json_label(text, self.job.label_key) if is_json else parse_label(text)
        except WrongLabelError as error:
            fix = "correct the label, or move the tar out of the directory"
            raise DataError(f"{self.job.path}: {part.name}: {error}; {fix}") from error


def no_tars(root: Path) -> str:
    """The message for a directory without a tar."""
    names = sorted(path.name for path in root.iterdir())
    if packed := [name for name in names if name.lower().endswith(PACKED_TARS)]:
        fix = "an index points into the tar itself: unpack them to .tar first"
        return f"{root}: holds no *.tar but {len(packed)} compressed ones, such as {packed[0]}; {fix}"
    if inside := sorted(root.glob("*/*.tar")):
        return f"{root}: holds no *.tar; name {inside[0].parent} as the directory"
    return f"{root}: holds no *.tar"


def left_out(scans: Sequence[Scan]) -> Iterator[BadSource]:
    """The keys without a sample; the reason names the other half of a key, if it is elsewhere."""
    bad = [sample for scan in scans for sample in scan.bad]
    labels = {
        sample.key.rpartition("/")[2]: f"{sample.shard}: {sample.key}"
        for sample in bad
        if sample.reason == NO_IMAGE
    }
    for sample in bad:
        reason, other = sample.reason, labels.get(sample.key.rpartition("/")[2])
        if reason == NO_LABEL and other:
            reason = f"{NO_LABEL}, which is {other}; both must be in one tar and one directory"
        yield BadSource(sample.key, sample.shard, -1, reason)


def no_samples(
    root: Path, bad: Sequence[BadSource], skipped: Skipped, fields: Sequence[Field] = IMAGE_AND_LABEL
) -> str:
    """The message for tars without a single sample: their actual contents."""
    reasons = Skipped()
    for source in bad:
        reasons.add(source.reason.partition(", which is ")[0], f"{source.source}: {source.key}")
    kinds = [f"{count} of {kind}, such as {example}" for kind, (count, example) in reasons.kinds.items()]
    if (pieces := next((b for b in bad if ", which is " in b.reason), None)) is not None:
        kinds.insert(0, f"{pieces.source}: {pieces.key}: {pieces.reason}")
    text = "; ".join([*kinds[:3], *skipped.notes("of the members")]) or "they have no members"
    if tuple(fields) != IMAGE_AND_LABEL:
        extensions = Extensions(fields)
        one = "; ".join(f"{item.name}: {extensions.shown(item)}" for item in fields)
        return f"{root}: no sample in its tars ({text}); one has the members {one}"
    images, labels = (", .".join(names) for names in (IMAGE_SUFFIXES, LABELS))
    return f"{root}: no sample in its tars ({text}); one is KEY.{images} with KEY.{labels}"
