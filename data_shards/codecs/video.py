"""Videos as bytes: the container is checked, the frames are not decoded here."""

from typing import Any

from data_shards.errors import DataError

HEADER, LARGE_HEADER = 8, 16  # bytes of a box's header, with a size of 32 and of 64 bits
MAX_BOXES = 100_000


class VideoCodec:
    """An MP4 file (ISO/IEC 14496-12): `ftyp` first, complete boxes, `moov` and `mdat` among them."""

    extensions = ("mp4", "m4v", "mov")

    def encode(self, value: Any) -> bytes:
        """The bytes of a finished file; frames are not encoded."""
        if not isinstance(value, bytes):
            raise DataError(f"a video is the bytes of an MP4 file, not a {type(value).__name__}")
        self.check(value)
        return value

    def decode(self, body: bytes) -> bytes:
        """The checked bytes, for the reader of the task's choice."""
        self.check(body)
        return body

    def check(self, body: bytes) -> None:
        """DataError for another container, and for one that is cut short."""
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
                raise DataError(
                    f"an MP4 that is cut short or damaged: box {kind!r} at byte {at} of {len(body)}"
                )
            kinds.append(kind)
            at += size
        for needed in (b"ftyp", b"moov", b"mdat"):
            if needed not in kinds:
                raise DataError(f"an MP4 without its box {needed.decode()!r}: it is empty or damaged")
