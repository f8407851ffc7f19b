"""The part of USTAR (POSIX.1-1988) that a shard is written in: equal samples give equal bytes.

    | header of KEY.jpg | body, padded | header of KEY.cls | ASCII number, padded | ... | 1024 zeros |

Headers are 512 bytes; bodies are padded with zeros to multiples of 512. The members of a sample lie side
by side in the order of the fields. A PNG or WebP is KEY.png or KEY.webp.

`tarfile` and `webdataset` read it; only this layout lets a sample be checked from its index record alone.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from data_shards.format.blocks import BLOCK
from data_shards.format.fields import IMAGE_AND_LABEL, Field, Sample
from data_shards.format.records import record_of

END_OF_ARCHIVE = bytes(2 * BLOCK)
CHECKSUM = slice(148, 156)
Record = tuple[tuple[int, int, int] | int, ...]  # of every member offset, size and xxh3, or its number
MAX_BODY = 2**32 - 1  # a uint32 in the index


def padded(size: int) -> int:
    """`size` bytes rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _template() -> bytearray:
    """A header but for its name, its size and its checksum: mode 0644, owner 0, time 0."""
    block = bytearray(BLOCK)
    fields = {
        100: b"0000644",
        108: b"0000000",
        116: b"0000000",
        136: b"%011o" % 0,
        156: b"0",
        257: b"ustar\x0000",
    }
    for start, value in fields.items():
        block[start : start + len(value)] = value
    return block


_OWNERS, _TYPE = bytes(_template()[100:124]), bytes(_template()[156:])
_TIME = bytes(_template()[135:148])  # with the zero that ends the size
_SUM = sum(_template()) + 8 * ord(" ")


def header(name: str, size: int) -> bytes:
    """The 512-byte header of a plain file of `size` bytes; `name` is ASCII, at most 100 characters."""
    text, octal = name.encode("ascii"), b"%011o" % size
    assert len(text) <= 100, name
    assert len(octal) == 11, size
    checksum = b"%06o\x00 " % (_SUM + sum(text) + sum(octal))
    return b"".join((text.ljust(100, b"\x00"), _OWNERS, octal, _TIME, checksum, _TYPE))


def header_sum(block: bytes | bytearray) -> int:
    """The sum of a header's bytes with its checksum field counted as spaces, as POSIX defines it."""
    return sum(block) - sum(block[CHECKSUM]) + 8 * ord(" ")


def parse_header(block: bytes) -> tuple[str, int]:
    """The name and the size in bytes of a header; ValueError when its checksum or a field is damaged."""
    if len(block) < BLOCK:
        raise ValueError("the tar ends before this header")
    if int(block[CHECKSUM].rstrip(b"\x00 ") or b"0", 8) != header_sum(block):
        raise ValueError("damaged tar header")
    return block[:100].rstrip(b"\x00").decode("ascii"), int(block[124:135], 8)


def write_samples(
    handle: int,
    samples: Iterable[Sample],
    sha256: "hashlib._Hash | None" = None,
    fields: Sequence[Field] = IMAGE_AND_LABEL,
) -> np.ndarray:
    """Write samples one after another, then the end: their index, (samples,) of `record_of(fields)`.

    Each sample leaves in one system call and is copied once, by the kernel. `sha256` is fed with the tar's
    bytes; None saves that time.
    """
    records, at = [], 0
    for sample in samples:
        record, parts = _laid_out(sample, fields, at)
        records.append(record)
        at += _write(handle, parts, sha256)
    _write(handle, (END_OF_ARCHIVE,), sha256)
    return np.array(records, dtype=record_of(fields))


def _laid_out(sample: Sample, fields: Sequence[Field], at: int) -> tuple[Record, list[bytes]]:
    """The record of a sample that starts at byte `at`, and its bytes in parts."""
    record: list[tuple[int, int, int] | int] = []
    parts, pending = [], b""  # `pending` is small, and joined to what follows
    for field in fields:
        value = sample.members[field.name]
        body = b"%d" % value if isinstance(value, int) else value
        pending += header(f"{sample.key}.{field.extension_of(body)}", len(body))
        if isinstance(value, int):
            record.append(value)
            pending += body
        else:
            record.append((at + BLOCK, len(body), xxhash.xxh3_64_intdigest(body)))
            parts += [pending, body]
            pending = b""
        pending += bytes(-len(body) % BLOCK)
        at += BLOCK + padded(len(body))
    return tuple(record), [*parts, pending]


def _write(handle: int, parts: Sequence[bytes], sha256: "hashlib._Hash | None") -> int:
    if sha256 is not None:
        for part in parts:
            sha256.update(part)
    size = sum(map(len, parts))
    written = os.writev(handle, parts)
    if written != size:  # a signal, or more than 2 GiB
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(handle, rest) :]
    return size
