"""Scan a tar made by others for its samples: KEY.jpg, .png ... with KEY.cls, .json or .txt.

A key is a member's name up to the first dot of its last part, as in the webdataset library. The members
of a key may be anywhere in the tar; of several labels, .cls precedes .json and .json precedes .txt. A hard
link refers to the member that it names. Symbolic links are not followed: they may lead out of the tar.
"""

import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data_shards.errors import DataError
from data_shards.format.check import BadSample
from data_shards.format.file_kinds import COMPRESSED, HEAD_BYTES, kind_of
from data_shards.format.image_names import HIDDEN, IMAGE_SUFFIXES, Skipped, is_hidden
from data_shards.format.index import RECORD
from data_shards.format.labels import Label, WrongLabelError, json_label, label_text, parse_label
from data_shards.format.samples import BadSource, BadSourceError
from data_shards.format.tar import MAX_BODY
from data_shards.pack.reencode import Recipe, prepare

LABELS = ("cls", "json", "txt")
MAX_LABEL_BYTES = 2**20
PIECE = 2**20  # bytes read at a time
FIX = "get it again, or move it out of the directory"
NO_LABEL, NO_IMAGE = "an image without a label", "a label without an image"
UNKNOWN = "members whose suffix is of no image and no label"
PACKED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
DOTTED = "members with a dot in their key, as a key ends at the first dot"


class TarMember(NamedTuple):
    """A member of a tar: where its bytes lie, or the `problem` why they cannot be read."""

    name: str
    offset: int
    size: int
    problem: str = ""


@dataclass
class Members:
    """The members of one key: the image and the labels, by their suffixes."""

    image: TarMember | None = None
    labels: dict[str, TarMember] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanJob:
    """A tar to read; `label_key` is where a .json that is an object has its label."""

    path: Path
    label_key: str
    check: str


@dataclass(frozen=True)
class Scan:
    """What a tar holds: index (samples,) of RECORD, whose labels are indices into `labels`.

    `named` is the member that first had each of the labels. `bad` are keys without an image or a label that
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
                groups, skipped = _group(job.path, tar)
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


def _group(path: Path, tar: tarfile.TarFile) -> tuple[dict[str, Members], Skipped]:
    """The members by key, in the order of the first of each, and what belongs to no key."""
    groups: dict[str, Members] = {}
    skipped = Skipped()
    stored: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        part = _member(member, stored)
        key, suffix = split_name(member.name)
        if member.isdir():
            continue
        if kind := _unusable(member.name, suffix):
            skipped.add(kind, f"{path.name}: {member.name}")
            continue
        group = groups.setdefault(key, Members())
        if suffix in group.labels or (suffix in IMAGE_SUFFIXES and group.image):
            raise DataError(f"{path}: key {key} has two of its kind, {member.name} is the second; {FIX}")
        if suffix in LABELS:
            group.labels[suffix] = part
        else:
            group.image = part
    return groups, skipped


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


def _unusable(name: str, suffix: str) -> str:
    """The kind of members that belong to no key, "" for those that do."""
    if is_hidden(name):
        return HIDDEN
    if suffix in IMAGE_SUFFIXES + LABELS:
        return ""
    return DOTTED if suffix.rpartition(".")[2] in IMAGE_SUFFIXES + LABELS else UNKNOWN


def split_name(name: str) -> tuple[str, str]:
    """Key and ending: "a/b" and "jpg" of "a/b.jpg"; no ending where the library sees no key."""
    directory, slash, last = name.rpartition("/")
    base, _, suffix = last.partition(".")
    key = directory + slash + base
    return key, suffix.lower() if key else ""


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

    def scan(self, groups: dict[str, Members], skipped: Skipped) -> Scan:
        """Index every key that has both parts; the others are bad."""
        rows, bad = [], []
        for key, group in groups.items():
            try:
                rows.append(self._record(group))
            except ValueError as error:  # BadSourceError among them
                if isinstance(error, DataError) and not isinstance(error, BadSourceError):
                    raise
                bad.append(BadSample(self.job.path.name, key, " ".join(str(error).split())))
        index = np.sort(np.array(rows, dtype=RECORD), order="offset")
        return Scan(index, tuple(self.label_ids), tuple(self.named), tuple(bad), skipped)

    def _record(self, group: Members) -> tuple[int, int, int, int]:
        if group.image is None or not group.labels:
            raise ValueError(NO_IMAGE if group.image is None else NO_LABEL)
        part = next(group.labels[suffix] for suffix in LABELS if suffix in group.labels)
        label = self._label(part)
        body = self._read(group.image)
        prepare(body, self.recipe)
        if label not in self.label_ids:
            self.named.append(f"{self.job.path.name}: {part.name}")
        label_id = self.label_ids.setdefault(label, len(self.label_ids))
        return group.image.offset, len(body), label_id, xxhash.xxh3_64_intdigest(body)

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


def no_samples(root: Path, bad: Sequence[BadSource], skipped: Skipped) -> str:
    """The message for tars without a single sample: their actual contents."""
    reasons = Skipped()
    for source in bad:
        reasons.add(source.reason.partition(", which is ")[0], f"{source.source}: {source.key}")
    kinds = [f"{count} of {kind}, such as {example}" for kind, (count, example) in reasons.kinds.items()]
    if (pieces := next((b for b in bad if ", which is " in b.reason), None)) is not None:
        kinds.insert(0, f"{pieces.source}: {pieces.key}: {pieces.reason}")
    text = "; ".join([*kinds[:3], *skipped.notes("of the members")]) or "they have no members"
    images, labels = (", .".join(names) for names in (IMAGE_SUFFIXES, LABELS))
    return f"{root}: no sample in its tars ({text}); one is KEY.{images} with KEY.{labels}"
