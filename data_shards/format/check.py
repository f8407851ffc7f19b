"""Check a shard against its index, sample by sample, from the bytes of both."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from data_shards.format.fields import SCALAR_EXTENSION, Field, Sample, split_name
from data_shards.format.tar import BLOCK, END_OF_ARCHIVE, Record, padded, parse_header


class BadSample(NamedTuple):
    """A defect of a shard; `key` is "*" where it concerns the complete file."""

    shard: str
    key: str
    reason: str


class Bytes:
    """An open file that can be sliced: each slice is one `pread`, and an I/O error is an OSError."""

    def __init__(self, handle: int) -> None:
        self.handle, self.size = handle, os.fstat(handle).st_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, cut: slice) -> bytes:
        start, stop, _ = cut.indices(self.size)
        return os.pread(self.handle, max(stop - start, 0), start)


def check_samples(
    shard: str, tar: Bytes | bytes, index: np.ndarray, fields: Sequence[Field]
) -> Iterator[Sample | BadSample]:
    """Every sample of a shard, intact or bad, one at a time, and last the end-of-archive mark.

    A damaged member hides none of those that follow it: the index states where each of them starts.
    """
    start = 0
    for row, record in enumerate(index.tolist()):
        key, problems = _key_at(tar, record), []
        members: dict[str, bytes | int] = {}
        for field, value in zip(fields, record, strict=True):
            try:
                members[field.name] = _member(tar, field, value, start, key)
            except (OSError, ValueError) as error:
                problems.append(f"{field.name}: {error}")
            start = _end_of(value, start)
        yield BadSample(shard, key or f"row {row}", "; ".join(problems)) if problems else Sample(key, members)
    if tar[start : start + len(END_OF_ARCHIVE) + 1] != END_OF_ARCHIVE:
        yield BadSample(shard, "*", f"end-of-archive mark is not at byte {start}")


def check_bodies(
    shard: str, tar: Bytes | bytes, index: np.ndarray, fields: Sequence[Field]
) -> Iterator[Sample | BadSample]:
    """Every sample of a tar made by others, intact or bad: its index knows the bytes of the files only."""
    for row, record in enumerate(index.tolist()):
        key, problems = _key_at(tar, record), []
        members: dict[str, bytes | int] = {}
        for field, value in zip(fields, record, strict=True):
            try:
                members[field.name] = value if isinstance(value, int) else _body(tar, value)
            except (OSError, ValueError) as error:
                problems.append(f"{field.name}: {error}")
        yield BadSample(shard, key or f"row {row}", "; ".join(problems)) if problems else Sample(key, members)


def _key_at(tar: Bytes | bytes, record: Record) -> str:
    """The key of a sample, from the header of its first file; "" where that is damaged."""
    offset = next(value[0] for value in record if not isinstance(value, int))
    try:
        return split_name(parse_header(tar[max(offset - BLOCK, 0) : offset])[0])[0]
    except (OSError, ValueError):
        return ""


def _end_of(value: tuple[int, int, int] | int, start: int) -> int:
    """The byte at which the next member starts; `start` is that of this one, which a file states itself."""
    if isinstance(value, int):
        return start + BLOCK + padded(len(str(value)))
    return value[0] + padded(value[1])


def _member(
    tar: Bytes | bytes, field: Field, value: tuple[int, int, int] | int, start: int, key: str
) -> bytes | int:
    """Cut out a member, which must start at `start`; ValueError where tar and index differ."""
    if isinstance(value, int):
        name, size = parse_header(tar[start : start + BLOCK])
        text = tar[start + BLOCK : start + BLOCK + min(size, BLOCK)]
        if text != str(value).encode():
            raise ValueError(f"member {name} holds {text!r}, index says {value}")
    else:
        if value[0] != start + BLOCK:
            raise ValueError(f"index says it is at {value[0]}, the tar at {start + BLOCK}")
        if start + BLOCK + value[1] > len(tar):
            raise ValueError(f"the tar ends at {len(tar)}, inside it")
        name, size = parse_header(tar[start : value[0]])
        if size != value[1]:
            raise ValueError(f"tar header says {size} bytes, index {value[1]}")
    found, extension = split_name(name)
    if found != (key or found) or not field.accepts(extension):
        wanted = field.extension or f"{field.prefix}{SCALAR_EXTENSION if field.is_scalar else 'jpg'}"
        raise ValueError(f"member is called {name}, not {key or 'KEY'}.{wanted}")
    return value if isinstance(value, int) else _body(tar, value)


def _body(tar: Bytes | bytes, value: tuple[int, int, int]) -> bytes:
    body = tar[value[0] : value[0] + value[1]]
    if xxhash.xxh3_64_intdigest(body) != value[2]:
        raise ValueError("checksum differs from the index")
    return body
