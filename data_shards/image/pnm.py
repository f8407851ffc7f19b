"""The portable anymaps P1 to P6, of any maxval: bits, gray and RGB, as text or as bytes.

See the manual pages pbm(5), pgm(5) and ppm(5) of Netpbm. Pillow reads those of a maxval other than 255 in a
Python loop over pixels, and gray ones of more than 8 bits without scaling.
"""

import re
from typing import NamedTuple

import numpy as np

from data_shards.image.formats import check_size, to_eight_bits

SPACE = rb"(?:\s|#[^\r\n]*[\r\n])++"
NUMBER = SPACE + rb"(\d{1,10})"
START = {
    kind: re.compile(rb"P%d" % kind + NUMBER * (2 if kind in (1, 4) else 3) + rb"\s") for kind in range(1, 7)
}
COMMENT = re.compile(rb"#[^\r\n]*")


class PnmHeader(NamedTuple):
    """`start` is the byte at which the pixels begin; P1 and P4 have no maxval, and 1 here."""

    kind: int
    height: int
    width: int
    maxval: int
    start: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W), or (H, W, 3) of RGB."""
        return (self.height, self.width, 3) if self.kind in (3, 6) else (self.height, self.width)


def read_header(body: bytes) -> PnmHeader:
    """The header of an anymap; ValueError when it is not one, or the image too large."""
    kind = body[1] - ord("0")
    if not (start := START[kind].match(body)):
        raise ValueError(f"a P{kind} without a complete header")
    width, height, *rest = (int(number) for number in start.groups())
    maxval = rest[0] if rest else 1
    if not 0 < maxval < 65536:
        raise ValueError(f"maxval ({maxval}) must be in 1 ... 65535")
    return PnmHeader(kind, *check_size(height, width), maxval, start.end())


def decode(body: bytes) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; ValueError when there are too few pixels, or one above maxval."""
    header = read_header(body)
    values = _read(body, header, int(np.prod(header.shape, dtype=np.int64)))
    if header.kind in (1, 4):
        values = 1 - values  # 1 is black
    return to_eight_bits(values.reshape(header.shape), header.maxval)


def _read(body: bytes, header: PnmHeader, count: int) -> np.ndarray:
    """The numbers in the file: (count,) integers, or (H, W) of P4."""
    if header.kind == 4:
        row = -(-header.width // 8)
        packed = np.frombuffer(body, np.uint8, header.height * row, header.start)
        return np.unpackbits(packed.reshape(header.height, row), axis=1, count=header.width)
    if header.kind in (5, 6):
        return np.frombuffer(body, np.uint8 if header.maxval < 256 else ">u2", count, header.start)
    text = COMMENT.sub(b"", body[header.start - 1 :])
    if header.kind == 1:  # digits that need no space between them
        digits = np.frombuffer(text.translate(None, b" \t\n\v\f\r"), np.uint8, count)
        return digits.astype(np.int64) - ord("0")
    numbers = np.fromstring(text, np.int64, sep=" ")[:count]
    if len(numbers) < count:
        raise ValueError(f"{len(numbers)} values where {count} are needed")
    return numbers
