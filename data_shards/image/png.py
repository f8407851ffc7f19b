"""PNG files verified: every chunk's CRC, the whole compressed stream and its Adler-32, all in bounded memory.

Pillow verifies none of it in the image data. What is handed to it is a PNG with the header, the palette and
the scanlines, which are no longer compressed: so nothing is inflated twice, and no text or colour profile of
the file is expanded. See the PNG specification (W3C, third edition), sections 5, 8 and 10.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from data_shards.image.formats import check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
# First column, first row, and the steps between columns and rows, of the passes of an interlaced image
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class PngHeader(NamedTuple):
    """The chunk IHDR; `depth` is in bits a channel."""

    width: int
    height: int
    depth: int
    color: int
    compression: int
    filter: int
    interlaced: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def image_bytes(self) -> int:
        """How many bytes the scanlines have, with the filter byte of each."""
        passes = PASSES if self.interlaced else ((0, 0, 1, 1),)
        bits, total = self.depth * CHANNELS[self.color], 0
        for left, top, across, down in passes:
            columns, rows = -((left - self.width) // across), -((top - self.height) // down)
            total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
        return total


def read_header(body: bytes) -> PngHeader:
    """The header of a PNG; ValueError when its chunk is damaged, or the image too large."""
    name, data = next(_chunks(body))
    if name != b"IHDR" or len(data) != HEADER.size:
        raise ValueError("a PNG without a header")
    header = PngHeader(*HEADER.unpack(data))
    if header.color not in CHANNELS:
        raise ValueError(f"a PNG of color type {header.color}")
    check_size(header.height, header.width)
    return header


def verified(body: bytes) -> bytes:
    """A PNG with the same pixels, its scanlines stored; ValueError or zlib.error when `body` is damaged."""
    header, palette, image = read_header(body), b"", []
    for name, data in _chunks(body):
        if name == b"IDAT":
            image.append(data)
        elif name == b"PLTE":
            palette = _chunk(name, data)
    scanlines = _inflate(b"".join(image), header.image_bytes)
    start = SIGNATURE + _chunk(b"IHDR", HEADER.pack(*header)) + palette
    return start + _chunk(b"IDAT", zlib.compress(scanlines, 0)) + _chunk(b"IEND", b"")


def _chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of every chunk up to IEND; what follows it is ignored, as every reader does."""
    at, name = len(SIGNATURE), b""
    while name != b"IEND":
        name, start = body[at + 4 : at + 8], at + 8
        end = start + int.from_bytes(body[at : at + 4], "big")
        if end + 4 > len(body):
            raise ValueError(f"a PNG that is cut short or damaged at byte {at}")
        if zlib.crc32(body[at + 4 : end]) != int.from_bytes(body[end : end + 4], "big"):
            raise ValueError(f"the checksum of the PNG chunk at byte {at} differs")
        yield name, body[start:end]
        at = end + 4


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def _inflate(compressed: bytes, size: int) -> bytes:
    """The first `size` bytes; of a stream that goes on after them the checksum is not verified."""
    stream = zlib.decompressobj()
    data = stream.decompress(compressed, size)
    if len(data) < size:
        raise ValueError(f"image data of {len(data)} bytes where {size} are needed")
    if not stream.decompress(stream.unconsumed_tail, 1) and not stream.eof:
        raise ValueError("compressed image data without an end")
    return data
