"""Is a shard what its index says? Checked sample by sample from the bytes of both."""

from typing import NamedTuple

import numpy as np
import xxhash

from data_shards.tar import BLOCK, END_OF_ARCHIVE, padded, parse_header


class BadSample(NamedTuple):
    """One thing found wrong; `key` is "*" when it is the whole file."""

    shard: str
    key: str
    reason: str


class Sample(NamedTuple):
    """One sample cut out of a shard; `end` is the offset in bytes at which the next one starts."""

    key: str
    body: bytes
    label: int
    end: int


def key_at(tar: memoryview | bytes, offset: int, row: int) -> str:
    """The key of the sample whose JPEG starts at `offset`, from its tar header, or its row."""
    try:
        return parse_header(bytes(tar[max(offset - BLOCK, 0) : offset]))[0].rpartition(".")[0]
    except ValueError:
        return f"row {row}"


def cut_sample(tar: memoryview | bytes, record: tuple[int, int, int, int], start: int) -> Sample:
    """Cut the sample of an index `record` that must start at `start`; ValueError says what does not agree."""
    offset, size, label, checksum = record
    if offset != start + BLOCK:
        raise ValueError(f"index says its JPEG is at {offset}, the tar at {start + BLOCK}")
    body = bytes(tar[offset : offset + size])
    if len(body) != size:
        raise ValueError(f"the tar ends at {len(tar)}, inside this sample")
    name, found = parse_header(bytes(tar[start:offset]))
    if found != size:
        raise ValueError(f"tar header says {found} bytes, index {size}")
    if xxhash.xxh3_64_intdigest(body) != checksum:
        raise ValueError("checksum of the JPEG differs from the index")
    key, _, suffix = name.rpartition(".")
    if suffix != "jpg":
        raise ValueError(f"member is called {name}, not KEY.jpg")
    return Sample(key, body, label, _check_label(tar, offset + padded(size), key, label))


def _check_label(tar: memoryview | bytes, start: int, key: str, label: int) -> int:
    name, size = parse_header(bytes(tar[start : start + BLOCK]))
    text = bytes(tar[start + BLOCK : start + BLOCK + size])
    if name != f"{key}.cls" or text != str(label).encode():
        raise ValueError(f"label member {name} holds {text!r}, index says {label}")
    return start + BLOCK + padded(size)


def check_samples(
    shard: str, tar: memoryview | bytes, index: np.ndarray
) -> tuple[list[Sample], list[BadSample]]:
    """Every sample of a shard, sound ones and bad ones apart, and the end-of-archive mark.

    A damaged sample hides none that follow it: the index says where each of them starts.
    """
    good, bad, start = [], [], 0
    for row, record in enumerate(index.tolist()):
        try:
            good.append(cut_sample(tar, record, start))
        except ValueError as error:
            bad.append(BadSample(shard, key_at(tar, record[0], row), str(error)))
        start = _end_of(record)
    if bytes(tar[start:]) != END_OF_ARCHIVE:
        bad.append(BadSample(shard, "*", f"end-of-archive mark is not at byte {start}"))
    return good, bad


def _end_of(record: tuple[int, int, int, int]) -> int:
    offset, size, label, _ = record
    return offset + padded(size) + BLOCK + padded(len(str(label)))
