"""Samples of several files: one folder a member, whose files are paired by their stems.

    ROOT/SPLIT/FOLDER/**/STEM.ext    or ROOT/FOLDER/SPLIT/**/STEM.ext, or ROOT/FOLDER for one split, train

A stem is a file's path below that directory without its suffix, or what `*` stands for in a pattern: with
`*_gtFine_labelIds.png`, city/a_gtFine_labelIds.png has the stem city/a.
"""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.codecs.registry import codec_of
from data_shards.errors import DataError
from data_shards.format.classes import shown
from data_shards.format.fields import Field, check_fields, has_label
from data_shards.format.image_names import HIDDEN, Skipped, is_hidden
from data_shards.format.samples import Source
from data_shards.pack.sources.file_samples import file_sizes, read_file
from data_shards.pack.sources.folders import needed
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.split_folders import ALIASES
from data_shards.pack.sources.walking import scan

OTHER_FILES = "files that are no such member"


@dataclass(frozen=True)
class MemberFolder:
    """Where the files of a member are: `folder` below the root; its last part may be a pattern with a `*`."""

    field: Field
    folder: str

    @property
    def directory(self) -> str:
        """The folder without its pattern."""
        head, _, last = self.folder.rpartition("/")
        return head if "*" in last else self.folder

    def stem(self, path: str) -> str:
        """The stem of a file by its path below the directory; "" for a file that is no such member."""
        head, slash, name = path.rpartition("/")
        last = self.folder.rpartition("/")[2]
        if "*" in last:
            before, _, after = last.partition("*")
            fits = len(name) > len(before + after) and name.startswith(before) and name.endswith(after)
            return head + slash + name[len(before) : len(name) - len(after)] if fits else ""
        stem, _, suffix = name.rpartition(".")
        return head + slash + stem if stem and suffix.lower() in codec_of(self.field).extensions else ""


@dataclass(frozen=True)
class MemberFiles:
    """Samples whose members are files below `root`: the list of paths of every field."""

    root: Path
    fields: tuple[Field, ...]
    names: tuple[PathList, ...]

    def __len__(self) -> int:
        return len(self.names[0])

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        members = zip(self.fields, self.names, strict=True)
        return {field.name: read_file(self.root, names[i]) for field, names in members}

    def select(self, rows: np.ndarray) -> "MemberFiles":
        """The samples at `rows`."""
        return MemberFiles(self.root, self.fields, tuple(names.select(rows) for names in self.names))

    def describe(self, i: int) -> str:
        """The path of the first member below `root`."""
        return self.names[0][i]

    def label(self, i: int) -> int:
        """-1: it is in a file."""
        return -1

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of all files of a sample."""
        total = np.zeros(len(self), dtype=np.int64)
        for names in self.names:
            total += file_sizes(self.root, names)
        return total

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the names of the fields and of all paths; what is in the files is not read."""
        sha = hashlib.sha256(repr([(field.name, field.codec) for field in self.fields]).encode())
        for names in self.names:
            names.update(sha)
        return sha.hexdigest()


def member_folders(
    directory: str | Path | None,
    members: Sequence[MemberFolder],
    *,
    classes: Sequence[str] = (),
    splits: Collection[str] | None = None,
) -> Source:
    """The samples whose members lie in folders of `directory`, by split; `classes` name labels or mask ids.

    DataError: a folder that is not there, a stem with two files or without a member, labels without classes.
    """
    root = needed(directory, "members", "the directory that holds the folders of the members")
    if not members:
        raise DataError("--source members needs --member NAME=FOLDER[:CODEC], one for each member")
    fields = tuple(member.field for member in members)
    check_fields(fields)
    if has_label(fields) and not classes:
        raise DataError("the member label needs --classes FILE, with the name of a class a line")
    found, skipped = {}, Skipped()
    for split, places in _places(root, members).items():
        if splits is None or split in splits:
            found[split] = _paired(root, members, places, skipped)
    if missing := [split for split in splits or () if split not in found]:
        raise DataError(f"--splits {missing[0]}: {root} holds {', '.join(found) or 'other splits'}")
    description = f"folders of members: {', '.join(f'{f.name} ({f.codec})' for f in fields)}"
    notes = tuple(skipped.notes(str(root)))
    return Source("members", description, tuple(classes), found, notes, fields)


def _places(root: Path, members: Sequence[MemberFolder]) -> dict[str, list[str]]:
    """The directory of every member below the root, by split."""
    found: dict[str, list[str]] = {}
    for split, names in ALIASES.items():
        for name in names:
            for pattern in (f"{name}/%s", f"%s/{name}"):
                places = [pattern % member.directory if member.directory else name for member in members]
                there = [place for place in places if (root / place).is_dir()]
                if there and len(there) < len(places):
                    (lacking, *_) = [place for place in places if place not in there]
                    raise DataError(f"{root / lacking}: no such directory, but {root / there[0]} is there")
                if there and places != found.setdefault(split, places):
                    both = f"{root / found[split][0]} and {root / places[0]}"
                    raise DataError(f"{both} are both the split {split}; rename one or move it elsewhere")
    if found:
        return found
    for member in members:
        if not (root / member.directory).is_dir():
            shape = f"{root}/SPLIT/{member.directory} and {root}/{member.directory}/SPLIT"
            raise DataError(f"{root / member.directory}: no such directory, nor are {shape}; see --member")
    return {"train": [member.directory for member in members]}


def _paired(
    root: Path, members: Sequence[MemberFolder], places: Sequence[str], skipped: Skipped
) -> MemberFiles:
    """The samples of a split, by stem; DataError unless every stem has one file of each member."""
    by_stem = [_by_stem(root, member, place, skipped) for member, place in zip(members, places, strict=True)]
    stems = sorted(by_stem[0].keys())
    for member, place, files in zip(members[1:], places[1:], by_stem[1:], strict=True):
        for these, those, what, where in (
            (by_stem[0], files, member.field.name, place),
            (files, by_stem[0], members[0].field.name, places[0]),
        ):
            if lacking := sorted(these.keys() - those.keys()):
                text = f"{len(lacking)} samples have no {what} in {root / where}: {shown(lacking)}"
                raise DataError(f"{text}; add these files, or move the other files of the samples elsewhere")
    fields = tuple(member.field for member in members)
    return MemberFiles(root, fields, tuple(PathList.of(files[stem] for stem in stems) for files in by_stem))


def _by_stem(root: Path, member: MemberFolder, place: str, skipped: Skipped) -> dict[str, str]:
    """The path below the root of every file of a member, by its stem."""
    found: dict[str, str] = {}
    for path in _files(str(root / place), "", skipped):
        if not (stem := member.stem(path)):
            skipped.add(f"{OTHER_FILES} ({member.field.name})", f"{place}/{path}")
            continue
        relative = os.path.normpath(f"{place}/{path}")
        if found.setdefault(stem, relative) != relative:
            raise DataError(
                f"{root / relative}: {root / found[stem]} is the {member.field.name} of {stem} already"
            )
    return found


def _files(top: str, below: str, skipped: Skipped) -> Iterator[str]:
    """The paths of all files below `top`, by name; links to directories are not followed."""
    for entry in scan(f"{top}/{below}"):
        if is_hidden(entry.name):
            skipped.add(HIDDEN, below + entry.name)
        elif entry.is_dir(follow_symlinks=False):
            yield from _files(top, f"{below}{entry.name}/", skipped)
        else:
            yield below + entry.name
