"""Read a tar made by others into what an index needs: KEY.jpg, .jpeg or .png, with KEY.cls, .json or .txt.

A key is a member's name up to the first dot of its last part, as the webdataset library has it. The members
of a key may stand anywhere in the tar; of several labels .cls goes before .json and .json before .txt.
"""

import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from data_shards.check import BadSample
from data_shards.errors import DataError
from data_shards.index import RECORD
from data_shards.reencode import Recipe, prepare
from data_shards.samples import BadSourceError
from data_shards.tar import MAX_BODY

IMAGES = ("jpg", "jpeg", "png")
LABELS = ("cls", "json", "txt")
MAX_LABEL_BYTES = 2**20
PIECE = 2**20  # bytes read at a time
FIX = "get it again, or move it out of the directory"
Label = int | str


@dataclass
class Members:
    """The members of one key: the image and the labels, by their endings."""

    image: tarfile.TarInfo | None = None
    labels: dict[str, tarfile.TarInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanJob:
    """A tar to read; `label_key` is where a .json that is an object has its label."""

    path: Path
    label_key: str
    check: str


@dataclass(frozen=True)
class Scan:
    """What a tar holds: index (samples,) of RECORD, whose labels are places in `labels`; `ignored` members.

    `bad` are keys without an image or a label that can be used.
    """

    index: np.ndarray
    labels: tuple[Label, ...]
    bad: tuple[BadSample, ...]
    ignored: int


def scan_tar(job: ScanJob) -> Scan:
    """Read a tar from end to end; DataError where its structure is damaged, since more may be lost there."""
    try:
        with open(job.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            groups, ignored = _group(job.path, tar)
            _check_end(job.path, file.fileno(), tar.offset)
            return _Scanner(job, file.fileno()).scan(groups, ignored)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{job.path}: not a tar that can be indexed ({error}); {FIX}") from error
    except OSError as error:
        raise DataError(
            f"{job.path}: cannot read it ({error.strerror}); see to it and run it again"
        ) from error


def _group(path: Path, tar: tarfile.TarFile) -> tuple[dict[str, Members], int]:
    """The members by key, in the order of the first of each, and how many are neither image nor label."""
    groups: dict[str, Members] = {}
    ignored = 0
    for member in tar:
        key, suffix = split_name(member.name)
        if not member.isreg() or member.issparse() or suffix not in IMAGES + LABELS:
            ignored += not member.isdir()
            continue
        group = groups.setdefault(key, Members())
        if suffix in group.labels or (suffix in IMAGES and group.image):
            raise DataError(f"{path}: key {key} has two of its kind, {member.name} is the second; {FIX}")
        if suffix in LABELS:
            group.labels[suffix] = member
        else:
            group.image = member
    return groups, ignored


def split_name(name: str) -> tuple[str, str]:
    """Key and ending: "a/b" and "jpg" of "a/b.jpg"; no ending where the library sees no key."""
    directory, slash, last = name.rpartition("/")
    base, _, suffix = last.partition(".")
    key = directory + slash + base
    return key, suffix.lower() if key else ""


def _check_end(path: Path, handle: int, at: int) -> None:
    """tarfile stops without a word at a damaged header: then what follows is not the zeros of an end."""
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
        self.places: dict[Label, int] = {}
        self.recipe = Recipe(check=job.check)

    def scan(self, groups: dict[str, Members], ignored: int) -> Scan:
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
        return Scan(index, tuple(self.places), tuple(bad), ignored)

    def _record(self, group: Members) -> tuple[int, int, int, int]:
        if group.image is None or not group.labels:
            raise ValueError(
                "a label without an image" if group.image is None else "an image without a label"
            )
        label = self._label(group)
        body = self._read(group.image)
        prepare(body, self.recipe)
        place = self.places.setdefault(label, len(self.places))
        return group.image.offset_data, len(body), place, xxhash.xxh3_64_intdigest(body)

    def _read(self, member: tarfile.TarInfo) -> bytes:
        if not 0 < member.size <= MAX_BODY:
            raise ValueError(f"{member.name} has {member.size} bytes")
        return os.pread(self.handle, member.size, member.offset_data)

    def _label(self, group: Members) -> Label:
        suffix = next(suffix for suffix in LABELS if suffix in group.labels)
        member = group.labels[suffix]
        if member.size > MAX_LABEL_BYTES:
            raise ValueError(f"{member.name} has {member.size} bytes, too many for a label")
        text = self._read(member).decode("utf-8").strip()
        return _from_json(text, self.job.label_key) if suffix == "json" else parse_label(text)


def parse_label(text: str) -> Label:
    """A number if it is written as one, otherwise a class name; ValueError when it is empty or many lines."""
    if not text or "\n" in text:
        raise ValueError("its label has several lines" if text else "its label is empty")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def _from_json(text: str, label_key: str) -> Label:
    value = json.loads(text)
    if isinstance(value, dict):
        if label_key not in value:
            there = ", ".join(list(value)[:8])
            raise ValueError(f"its .json has no {label_key!r}; it has {there}; see --label-key")
        value = value[label_key]
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str):
        return parse_label(value.strip())
    raise ValueError(f"its .json gives {value!r} as label, neither a number from 0 nor a name")
