"""Which images are decoded: an allow-list of formats by content, limits, and one class of error.

The format is decided by the first bytes, never by a file name, so no other decoder is ever started. What a
decoder raises, whatever its class, becomes a DataError in `decoder`; the modules for single formats raise
ValueError with the reason and leave the rest to it.
"""

import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from data_shards.errors import DataError

FORMATS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"(II|MM)(\*\x00|\x00\*)|II\+\x00|MM\x00\+"),
    "AVIF": re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL),
    "PNM": re.compile(rb"P[1-6][\s#]"),
}
MAX_PIXELS = 178_956_970  # of one image, from its header: Pillow's own limit, 512 MiB of RGB
MAX_SCANS = 100  # of a progressive JPEG, as in libvips; each scan costs time for the whole image
SCAN_BYTES = 10  # the least that a scan has, in its header
START_OF_SCAN, PROGRESSIVE = 0xDA, (0xC2, 0xC6, 0xCA, 0xCE)  # markers of ITU T.81, table B.1
FILL = re.compile(rb"\xff+")
P = ParamSpec("P")
T = TypeVar("T")


def decoder(function: Callable[Concatenate[bytes, P], T]) -> Callable[Concatenate[bytes, P], T]:
    """Make every exception of `function`, which decodes its first argument, a DataError with the reason."""

    @wraps(function)
    def guarded(body: bytes, *args: P.args, **options: P.kwargs) -> T:
        try:
            return function(body, *args, **options)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"undecodable image of {len(body)} bytes ({reason})") from error

    return guarded


def format_of(body: bytes) -> str:
    """The name in FORMATS of the format that `body` has; ValueError when it is none of them."""
    for name, beginning in FORMATS.items():
        if beginning.match(body):
            return name
    raise ValueError(f"it begins with {body[:8]!r}; the formats read are {', '.join(FORMATS)}")


def check_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels; ValueError when it is no image, or too large to be decoded."""
    if height < 1 or width < 1:
        raise ValueError(f"it has {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels; at most {MAX_PIXELS} pixels an image are decoded")
    return height, width


def is_progressive(body: bytes) -> bool:
    """Whether this is a progressive JPEG, by the frame header that comes before its first scan."""
    at = 2
    while body[:2] == b"\xff\xd8" and at + 4 <= len(body) and body[at] == 0xFF:
        marker = body[at + 1]
        if marker in PROGRESSIVE or marker == START_OF_SCAN:
            return marker != START_OF_SCAN
        if marker == 0xFF and (fill := FILL.match(body, at)):
            at = fill.end() - 1
        else:
            at += 2 + (body[at + 2] << 8 | body[at + 3])
    return False


def check_scans(body: bytes) -> None:
    """ValueError for a progressive JPEG of so many scans that decoding it would take minutes."""
    if len(body) < MAX_SCANS * SCAN_BYTES:
        return
    if is_progressive(body) and (scans := body.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"a progressive JPEG of {scans} scans; at most {MAX_SCANS} are decoded")


def to_eight_bits(values: np.ndarray, maxval: int) -> np.ndarray:
    """round(values / maxval x 255) as uint8, of the same shape; ValueError for integers beyond 0 ... maxval.

    With a maxval of 65535 this is a division by 257.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > maxval:
        raise ValueError(f"pixels in {low} ... {high}; their range is 0 ... {maxval}")
    if maxval == 255:
        return values.astype(np.uint8, copy=False)
    return np.rint(np.arange(maxval + 1) / maxval * 255).astype(np.uint8)[values]


def unit_to_eight_bits(values: np.ndarray) -> np.ndarray:
    """round(values x 255) as uint8, of the same shape; ValueError for floats that are not in 0 ... 1."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # so NaN is refused
        raise ValueError(
            f"floating-point pixels in {low:g} ... {high:g}; only 0 ... 1 can be scaled to 8 bits"
        )
    return np.rint(values * 255).astype(np.uint8)
