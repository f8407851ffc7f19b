"""Check a shard against its index, sample by sample, from the bytes of both."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from data_shards.format.image_names import IMAGE_SUFFIXES
from data_shards.format.tar import BLOCK, END_OF_ARCHIVE, padded, parse_header


class BadSample(NamedTuple):
    """A defect of a shard; `key` is "*" where it concerns the complete file."""

    shard: str
    key: str
    reason: str


class Sample(NamedTuple):
    """One sample of a shard; `end` is the offset in bytes at which the next one starts."""

    key: str
    body: bytes
    label: int
    end: int


class Bytes:
    """An open file that can be sliced: each slice is one `pread`, and an I/O error is an OSError."""

    def __init__(self, handle: int) -> None:
        self.handle, self.size = handle, os.fstat(handle).st_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, cut: slice) -> bytes:
        start, stop, _ = cut.indices(self.size)
        return os.pread(self.handle, max(stop - start, 0), start)


def key_at(tar: Bytes | bytes, offset: int, row: int) -> str:
    """The key of the sample whose JPEG starts at `offset`, from its tar header, or its row."""
    try:
        return parse_header(tar[max(offset - BLOCK, 0) : offset])[0].rpartition(".")[0]
    except (OSError, ValueError):
        return f"row {row}"


def cut_sample(tar: Bytes | bytes, record: tuple[int, int, int, int], start: int) -> Sample:
    """Cut out the sample of an index `record`, which must start at `start`; ValueError where they differ."""
    offset, size, label, checksum = record
    if offset != start + BLOCK:
        raise ValueError(f"index says its JPEG is at {offset}, the tar at {start + BLOCK}")
    body = tar[offset : offset + size]
    if len(body) != size:
        raise ValueError(f"the tar ends at {len(tar)}, inside this sample")
    name, stated = parse_header(tar[start:offset])
    if stated != size:
        raise ValueError(f"tar header says {stated} bytes, index {size}")
    if xxhash.xxh3_64_intdigest(body) != checksum:
        raise ValueError("checksum of the JPEG differs from the index")
    key, _, suffix = name.rpartition(".")
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"member is called {name}, not KEY.jpg")
    return Sample(key, body, label, _check_label(tar, offset + padded(size), key, label))


def _check_label(tar: Bytes | bytes, start: int, key: str, label: int) -> int:
    name, size = parse_header(tar[start : start + BLOCK])
    text = tar[start + BLOCK : start + BLOCK + size]
    if name != f"{key}.cls" or text != str(label).encode():
        raise ValueError(f"label member {name} holds {text!r}, index says {label}")
    return start + BLOCK + padded(size)


def check_samples(shard: str, tar: Bytes | bytes, index: np.ndarray) -> Iterator[Sample | BadSample]:
    """Every sample of a shard, intact or bad, one at a time, and last the end-of-archive mark.

    A damaged sample hides none of those that follow it: the index states where each of them starts.
    """
    start = 0
    for row, record in enumerate(index.tolist()):
        try:
            yield cut_sample(tar, record, start)
        except (OSError, ValueError) as error:
            yield BadSample(shard, key_at(tar, record[0], row), str(error))
        start = _end_of(record)
    if tar[start : start + len(END_OF_ARCHIVE) + 1] != END_OF_ARCHIVE:
        yield BadSample(shard, "*", f"end-of-archive mark is not at byte {start}")


def check_bodies(shard: str, tar: Bytes | bytes, index: np.ndarray) -> Iterator[Sample | BadSample]:
    """Every sample of a tar made by others, intact or bad: its index knows the images only."""
    for row, (offset, size, label, checksum) in enumerate(index.tolist()):
        key = key_at(tar, offset, row)
        try:
            body = tar[offset : offset + size]
        except OSError as error:
            yield BadSample(shard, key, str(error))
            continue
        if xxhash.xxh3_64_intdigest(body) == checksum:
            yield Sample(key, body, label, offset + padded(size))
        else:
            yield BadSample(shard, key, "checksum of the image differs from the index")


def _end_of(record: tuple[int, int, int, int]) -> int:
    offset, size, label, _ = record
    return offset + padded(size) + BLOCK + padded(len(str(label)))
