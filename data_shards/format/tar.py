"""The part of USTAR (POSIX.1-1988) that a shard is written in: equal samples give equal bytes.

    | header of KEY.jpg | body, padded | header of KEY.cls | ASCII label, padded | ... | 1024 zeros |

Headers are 512 bytes; bodies are padded with zeros to multiples of 512. A PNG or WebP is KEY.png or KEY.webp.

`tarfile` and `webdataset` read it; only this layout lets a sample be checked from its index record alone.
"""

import hashlib
import os
from collections.abc import Iterable

import numpy as np
import xxhash

from data_shards.format.index import RECORD

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
CHECKSUM = slice(148, 156)
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


def image_suffix(body: bytes) -> str:
    """The name ending that fits an image's first bytes; "jpg" when they tell nothing else."""
    if body[:4] == b"\x89PNG":
        return "png"
    return "webp" if body[:4] == b"RIFF" and body[8:12] == b"WEBP" else "jpg"


def write_samples(
    handle: int, samples: Iterable[tuple[str, bytes, int]], sha256: "hashlib._Hash | None" = None
) -> np.ndarray:
    """Write (key, image, label) one after another, then the end: their index, (samples,) of RECORD.

    Each sample leaves in one system call and is copied once, by the kernel. `sha256` is fed with the tar's
    bytes; None saves that time.
    """
    records, at = [], 0
    for key, body, label in samples:
        text = b"%d" % label
        head = header(f"{key}.{image_suffix(body)}", len(body))
        tail = b"".join(
            (bytes(-len(body) % BLOCK), header(f"{key}.cls", len(text)), text, bytes(-len(text) % BLOCK))
        )
        records.append((at + BLOCK, len(body), label, xxhash.xxh3_64_intdigest(body)))
        at += _write(handle, (head, body, tail), sha256)
    _write(handle, (END_OF_ARCHIVE,), sha256)
    return np.array(records, dtype=RECORD)


def _write(handle: int, parts: tuple[bytes, ...], sha256: "hashlib._Hash | None") -> int:
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
