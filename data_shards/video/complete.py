"""Whether a video file is complete, by the sizes that its container states: nothing is decoded.

FFmpeg reads a file that was cut short to where it ends, and reports nothing.
"""

from data_shards.errors import DataError

HEADER, LARGE_HEADER = 8, 16  # bytes of a box's header, with a size of 32 and of 64 bits
MAX_BOXES = 100_000
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_mp4(body: bytes) -> None:
    """DataError unless a file is an MP4 (ISO/IEC 14496-12): `ftyp` first, complete boxes, `moov`, `mdat`."""
    at = 0
    kinds: list[bytes] = []
    while at < len(body) and len(kinds) < MAX_BOXES:
        kind, size = body[at + 4 : at + 8], int.from_bytes(body[at : at + 4], "big")
        least = HEADER
        if size == 1:
            size, least = int.from_bytes(body[at + 8 : at + 16], "big"), LARGE_HEADER
        elif size == 0:  # to the end of the file
            size = len(body) - at
        if not kinds and kind != b"ftyp":
            raise DataError(f"no MP4: it begins with {body[:8]!r}")
        if size < least or at + size > len(body):
            raise DataError(f"an MP4 that is cut short or damaged: box {kind!r} at byte {at} of {len(body)}")
        kinds.append(kind)
        at += size
    for needed in (b"ftyp", b"moov", b"mdat"):
        if needed not in kinds:
            raise DataError(f"an MP4 without its box {needed.decode()!r}: it is empty or damaged")


def check_complete(body: bytes) -> None:
    """DataError where an MP4, a Matroska or WebM file, or an AVI ends before it should."""
    if body[4:8] == b"ftyp":
        check_mp4(body)
    elif body[:4] == EBML:
        _check_end("a Matroska or WebM file", _end_of_segment(body), len(body))
    elif body[:4] == b"RIFF":
        _check_end("an AVI", 8 + int.from_bytes(body[4:8], "little"), len(body))


def _check_end(what: str, end: int, size: int) -> None:
    if end > size:
        raise DataError(f"{what} that is cut short: it has {size} of {end} bytes")


def _end_of_segment(body: bytes) -> int:
    """Where the segment of a Matroska file ends (RFC 8794, section 4); 0 where the file does not say it."""
    length, size = _number(body, 4)
    at = 4 + length + max(size, 0)  # behind the EBML header
    if body[at : at + 4] != SEGMENT:
        return 0
    length, size = _number(body, at + 4)
    return at + 4 + length + size if size >= 0 else 0


def _number(body: bytes, at: int) -> tuple[int, int]:
    """A number of variable length: its bytes, and its value, -1 for "unknown"."""
    first = body[at] if at < len(body) else 0
    length = 9 - first.bit_length()
    if length > 8:
        return 1, -1
    value = int.from_bytes(body[at : at + length], "big") & ((1 << 7 * length) - 1)
    return length, -1 if value == (1 << 7 * length) - 1 else value
