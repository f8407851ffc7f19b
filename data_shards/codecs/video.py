"""Videos as bytes: each is checked frame by frame, and stays as it is."""

from typing import Any

from data_shards.errors import DataError
from data_shards.video.complete import check_mp4
from data_shards.video.facts import read_facts
from data_shards.video.prepare import PreparedVideo


class VideoCodec:
    """An MP4 file (ISO/IEC 14496-12): complete boxes, `ftyp` first, a video stream whose frames all decode.

    It needs PyAV: pip install 'swin-moe[video]'. data_shards/video/decode.py reads the frames.
    """

    extensions = ("mp4", "m4v", "mov")

    def encode(self, value: Any) -> bytes:
        """The bytes of a finished file, checked; those of a `PreparedVideo`, which was checked before."""
        if isinstance(value, PreparedVideo):
            return value.body
        if not isinstance(value, bytes):
            raise DataError(f"a video is the bytes of an MP4 file, not a {type(value).__name__}")
        self.check(value)
        return value

    def decode(self, body: bytes) -> bytes:
        """The checked bytes, for the reader of the task's choice."""
        self.check(body)
        return body

    def check(self, body: bytes) -> None:
        """DataError for another container, a file that is cut short, and frames that cannot be decoded."""
        check_mp4(body)
        read_facts(body)
