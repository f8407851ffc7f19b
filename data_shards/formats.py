"""Which images are decoded: an allow-list of formats by content, limits, and one class of error.

The format is decided by the first bytes, never by a file name, so no other decoder is ever started. What a
decoder raises, whatever its class, becomes a DataError in `decoding`; the modules for single formats raise
ValueError with the reason and leave the rest to it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from data_shards.errors import DataError

FORMATS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\x00|MM\x00[*+]"),
    "AVIF": re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL),
    "PNM": re.compile(rb"P[1-6][\s#]"),
}
MAX_PIXELS = 178_956_970  # of one image, from its header: Pillow's own limit, 512 MiB of RGB
MAX_SCANS = 100  # of a progressive JPEG, as in libvips; each scan costs time for the whole image
START_OF_SCAN, PROGRESSIVE = 0xDA, (0xC2, 0xC6, 0xCA, 0xCE)  # markers of ITU T.81, table B.1
FILL = re.compile(rb"\xff+")


@contextmanager
def decoding(body: bytes) -> Iterator[None]:
    """Turn every exception of a decoder into a DataError with the reason: each has classes of its own."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"undecodable image of {len(body)} bytes ({reason})") from error


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
    while body[:2] == b"\xff\xd8" and (fill := FILL.match(body, at)) and fill.end() + 3 <= len(body):
        at = fill.end()
        if (marker := body[at]) in PROGRESSIVE or marker == START_OF_SCAN:
            return marker != START_OF_SCAN
        at += 1 + int.from_bytes(body[at + 1 : at + 3], "big")
    return False


def check_scans(body: bytes) -> None:
    """ValueError for a progressive JPEG of so many scans that decoding it would take minutes."""
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
