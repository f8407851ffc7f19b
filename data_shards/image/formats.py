"""Which images are decoded: an allow-list of formats by content, limits, and one class of error.

The format is decided by the first bytes, never by a file name, so no other decoder is ever started. What a
decoder raises, whatever its class, becomes a DataError in `decoder`; the modules for single formats raise
ValueError with the reason and leave the rest to it.
"""

import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

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


def check_whole_gif(body: bytes) -> None:
    """ValueError unless every block of a GIF is there, up to its trailer (GIF89a, section 27)."""
    try:
        at = 13 + _color_table_bytes(body[10])
        while (block := body[at]) != 0x3B:
            at += 1
            if block == 0x2C:  # an image: its descriptor, a colour table, the code size, then its data
                at = _after_sub_blocks(body, at + 9 + _color_table_bytes(body[at + 8]) + 1)
            elif block == 0x21:  # an extension: its label, then its data
                at = _after_sub_blocks(body, at + 1)
    except IndexError:
        raise ValueError("a GIF that is cut short") from None


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(body: bytes, at: int) -> int:
    while size := body[at]:
        at += size + 1
    return at + 1


def check_whole_bmp(body: bytes) -> None:
    """ValueError when a BMP is shorter than its header says."""
    if len(body) < (size := int.from_bytes(body[2:6], "little")):
        raise ValueError(f"a BMP that is cut short: its header says {size} bytes")
