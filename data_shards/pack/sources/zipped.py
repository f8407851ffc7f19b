"""Members of a zip archive read in place, by any number of processes: no unpacking, no list of objects.

Layout: PKWARE's APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16
(its end, and zip64's) and 4.5.3 (zip64's extra field). `zipfile` would take 0.8 GB for ImageNet-1K's list,
in every process. M = members of the archive, N = samples.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from data_shards.errors import DataError
from data_shards.format.file_kinds import HEAD_BYTES, kind_of
from data_shards.format.samples import BadSourceError
from data_shards.pack.sources.path_list import PathList

END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
CENTRAL = struct.Struct("<4s4xHH4xLLLHHH8xL")  # signature, flags, method, crc, 2 sizes, 3 lengths, offset
LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
END_BYTES = 22  # of the end-of-directory record, without its comment
MAX_COMMENT, FULL32 = 65535, 2**32 - 1
STORED, DEFLATED, MISSING, ENCRYPTED = 0, 8, 65535, 1
METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES"}
MEMBER = np.dtype(
    [
        ("name", "<u8"),
        ("offset", "<u8"),
        ("packed", "<u8"),
        ("size", "<u8"),
        ("crc", "<u4"),
        ("method", "<u2"),
    ]
)


def read_directory(path: Path) -> np.ndarray:
    """Every member of an archive, sorted by the XXH3-64 of its name: (M,) of MEMBER, 38 bytes each.

    DataError: no zip archive, a damaged or encrypted one, the same name twice.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            start, size, count = _find_directory(file)
            file.seek(start)
            members = _parse_directory(file.read(size), count)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); see to it and run it again") from error
    except (ValueError, struct.error, IndexError) as error:
        if not head.startswith(b"PK"):
            kind = kind_of(head) or "another kind of file"
            raise DataError(f"{path}: is {kind}, not a zip archive; get it again") from error
        reason = error if isinstance(error, ValueError) else "its directory is damaged; get it again"
        raise DataError(f"{path}: cannot read this zip archive: {reason}") from error
    members = np.sort(members, order="name")
    if (members["name"][1:] == members["name"][:-1]).any():
        raise DataError(f"{path}: two members have the same name; zip it again")
    return members


def check_members(path: Path, chosen: np.ndarray, names: PathList) -> None:
    """DataError when one of the members that were looked for cannot be unpacked by anybody here."""
    other = np.flatnonzero(~np.isin(chosen["method"], (STORED, DEFLATED, MISSING)))
    if len(other):
        method = int(chosen["method"][other[0]])
        how = f"method {method}" + (f" ({METHODS[method]})" if method in METHODS else "")
        raise DataError(
            f"{path}: {len(other)} members are compressed by {how}, such as {names[int(other[0])]}; "
            "unpack it and zip it again with `zip -r -0`"
        )


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Start, size in bytes and members of the central directory."""
    end = file.seek(0, os.SEEK_END)
    tail_start = file.seek(max(0, end - MAX_COMMENT - END_BYTES - 20))
    tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) < at + END_BYTES:
        raise ValueError("it is cut short, as it has no complete end-of-directory record; get it again")
    if tail[at + 4 : at + 8] not in (bytes(4), b"\xff" * 4):
        raise ValueError("it is one part of an archive of several; join them with `zip -s 0`")
    count, size, start = struct.unpack_from("<HLL", tail, at + 10)
    if tail[max(at - 20, 0) : at].startswith(LOCATOR64):
        file.seek(struct.unpack_from("<Q", tail, at - 20 + 8)[0])
        record = file.read(56)
        if not record.startswith(END64):
            raise ValueError("its zip64 record is damaged; get it again")
        count, size, start = struct.unpack_from("<QQQ", record, 32)
    if start + size > tail_start + at:
        raise ValueError("it is cut short, as its directory does not lie within it; get it again")
    return start, size, count


def _parse_directory(raw: bytes, count: int) -> np.ndarray:
    if count * CENTRAL.size > len(raw):
        raise ValueError(f"its directory is too short for the {count} members it states; get it again")
    members, at = np.zeros(count, dtype=MEMBER), 0
    for row in range(count):
        magic, flags, method, crc, packed, size, name_len, extra_len, comment_len, offset = (
            CENTRAL.unpack_from(raw, at)
        )
        if magic != b"PK\x01\x02":
            raise ValueError(f"entry {row} of its directory is damaged; get it again")
        if flags & ENCRYPTED:
            raise ValueError("it is encrypted; unpack it with its password and zip it again")
        at += 46
        name = raw[at : at + name_len]
        extra = raw[at + name_len : at + name_len + extra_len]
        size, packed, offset = _zip64(extra, size, packed, offset)
        members[row] = xxhash.xxh3_64_intdigest(name), offset, packed, size, crc, method
        at += name_len + extra_len + comment_len
    return members


def _zip64(extra: bytes, *fields: int) -> tuple[int, ...]:
    """size, packed size and offset, each from the zip64 extra field where it did not fit 32 bits."""
    if FULL32 not in fields:
        return fields
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(wide) if field == FULL32 else field for field in fields)
        at += 4 + length
    return fields


def find_members(members: np.ndarray, names: PathList, prefix: str = "") -> np.ndarray:
    """The member of every name: (N,) of MEMBER; method MISSING where the archive has none."""
    hashes = np.fromiter(
        (xxhash.xxh3_64_intdigest((prefix + names[i]).encode()) for i in range(len(names))),
        np.uint64,
        len(names),
    )
    if not len(members):
        chosen = np.zeros(len(names), dtype=MEMBER)
        chosen["method"] = MISSING
        return chosen
    rows = np.minimum(np.searchsorted(members["name"], hashes), len(members) - 1)
    chosen = members[rows]
    chosen["method"][chosen["name"] != hashes] = MISSING
    return chosen


@dataclass(frozen=True)
class ZipSamples:
    """Samples that are members of the archive `path`, under `prefix` + name; labels (N,), members (N,)."""

    path: Path
    prefix: str
    names: PathList
    labels: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _file(self) -> BinaryIO:
        return open(self.path, "rb", buffering=0)  # noqa: SIM115  closed with this object

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        _, offset, packed, size, crc, method = self.members[i].item()
        if method not in (STORED, DEFLATED):
            text = f"not in {self.path.name}" if method == MISSING else f"compressed by method {method}"
            raise BadSourceError(text)
        try:
            body = self._packed_bytes(i, offset, packed)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot read it ({error.strerror}); run the same command again"
            ) from error
        try:
            body = zlib.decompress(body, -15, size) if method == DEFLATED else body
        except zlib.error as error:
            raise BadSourceError(f"damaged in the archive ({error})") from error
        if len(body) != size or zlib.crc32(body) != crc:
            raise BadSourceError(f"damaged in the archive: CRC-32 differs, or its size is not {size}")
        return {"image": body, "label": int(self.labels[i])}

    def _packed_bytes(self, i: int, offset: int, packed: int) -> bytes:
        """The stored bytes of member i; its local header must have its name."""
        name, handle = (self.prefix + self.names[i]).encode(), self._file.fileno()
        header = os.pread(handle, LOCAL.size + len(name), offset)
        if len(header) != LOCAL.size + len(name):
            raise BadSourceError("the archive ends before it")
        magic, name_len, extra_len = LOCAL.unpack_from(header)
        if magic != b"PK\x03\x04" or name_len != len(name) or header[LOCAL.size :] != name:
            raise BadSourceError("its header in the archive is damaged")
        return os.pread(handle, packed, offset + LOCAL.size + name_len + extra_len)

    def select(self, rows: np.ndarray) -> "ZipSamples":
        """The samples at `rows`."""
        return ZipSamples(
            self.path, self.prefix, self.names.select(rows), self.labels[rows], self.members[rows]
        )

    def describe(self, i: int) -> str:
        """The name inside the archive."""
        return f"{self.path.name}/{self.prefix}{self.names[i]}"

    def label(self, i: int) -> int:
        """The label of sample i."""
        return int(self.labels[i])

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes, uncompressed, from the archive's directory."""
        return np.where(self.members["method"] == MISSING, 0, self.members["size"]).astype(np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of names, labels, sizes and CRC-32s."""
        sha = hashlib.sha256(self.labels.astype("<u4").tobytes())
        self.names.update(sha)
        for field in ("size", "crc", "method"):
            sha.update(np.ascontiguousarray(self.members[field]).data)
        return sha.hexdigest()


def zip_samples(archive: Path, listed: Path, name: str, names: PathList, labels: np.ndarray) -> ZipSamples:
    """The members called `names`, below `name`/ where the archive was made of that directory.

    DataError: a damaged archive, one that has none of the names that the file `listed` has.
    """
    members, prefix = read_directory(archive), ""
    listed_members = find_members(members, names)
    if (listed_members["method"] == MISSING).all():  # zipped together with its directory
        prefix = f"{name}/"
        listed_members = find_members(members, names, prefix)
    if len(names) and (listed_members["method"] == MISSING).all():
        raise DataError(
            f"{archive}: none of its {len(members)} members is in {listed.name}, which lists {names[0]}; "
            "the two do not belong together"
        )
    check_members(archive, listed_members, names)
    return ZipSamples(archive, prefix, names, labels, listed_members)
