"""Writing videos by PyAV: frames encoded as H.264, packets copied to an MP4 of their own.

The encoder is x264 with one thread. One build of it writes the same bytes each time. Other builds, and with
--crf other processors, may differ in some bytes, as its rate control computes in floating point.

Legend: n frames of the video; H, W height and width of a frame in pixels.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.video.complete import HEADER
from data_shards.video.library import pyav

ENCODER = "libx264"
BIT_EXACT = {"fflags": "+bitexact"}  # no version of FFmpeg and no time in the file


def check_encoder() -> None:
    """DataError where PyAV comes without x264."""
    try:
        pyav().codec.Codec(ENCODER, "w")
    except Exception as error:
        raise DataError(f"this PyAV has no {ENCODER} ({error}); install its wheel: pip install av") from error


class Writer:
    """An MP4 in memory with one video stream of H.264 in 8 bits, 4:2:0: `add` frames, then take `finished()`.

    Args:
        height: H, an even number.
        width: W, an even number.
        unit: of the frames' time stamps, in seconds.
        key_distance: from one key frame to the next, in frames, at most.
        options: of x264, such as {"crf": "23"}.
    """

    def __init__(
        self, height: int, width: int, *, unit: Fraction, key_distance: int, options: Mapping[str, str]
    ) -> None:
        check_encoder()
        self._file = BytesIO()
        self._container = pyav().open(self._file, "w", format="mp4", options=BIT_EXACT)
        self._stream = self._container.add_stream(ENCODER)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        context = self._stream.codec_context
        context.thread_count, context.gop_size, context.time_base = 1, key_distance, unit
        self._stream.options = dict(options)

    def add(self, frame: Any, time: int) -> None:
        """Write an `av.VideoFrame` of format yuv420p with a time stamp, which is above those before."""
        frame.pts, frame.time_base = time, self._stream.codec_context.time_base
        frame.pict_type = 0  # that of the encoder's choice, not of the file that it comes from
        self._container.mux(self._stream.encode(frame))

    def finished(self) -> bytes:
        """The file, after its last frame."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()


def copy_packets(stream: Any, packets: Iterable[Any]) -> bytes:
    """An MP4 with the packets of a stream, in the order of decoding: no frame is decoded or changed."""
    file = BytesIO()
    with pyav().open(file, "w", format="mp4", options=BIT_EXACT) as container:
        copied = container.add_stream_from_template(stream, opaque=True)
        container.start_encoding()  # so that a file without packets has its header as well
        for packet in packets:
            packet.stream = copied
            container.mux(packet)
    return file.getvalue()


def i420(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB as the planes Y, U, V of 4:2:0, H and W even: (3 H / 2, W) uint8.

    The colours of ITU-R BT.601 in 16 ... 235, in integers, so that every processor has the same; U and V are
    the mean of four pixels.
    """
    planes = pixels.transpose(2, 0, 1).astype(np.int32)  # (3, H, W)
    red, green, blue = planes
    luma = 16 + ((66 * red + 129 * green + 25 * blue + 128) >> 8)
    rows = planes[:, ::2] + planes[:, 1::2]
    red, green, blue = rows[..., ::2] + rows[..., 1::2]  # four times the mean
    chroma_blue = 128 + ((-38 * red - 74 * green + 112 * blue + 512) >> 10)
    chroma_red = 128 + ((112 * red - 94 * green - 18 * blue + 512) >> 10)
    flat = np.concatenate([plane.ravel() for plane in (luma, chroma_blue, chroma_red)])
    return flat.reshape(-1, pixels.shape[1]).astype(np.uint8)


def padded_mp4(body: bytes, size: int) -> bytes | None:
    """An MP4 of `size` bytes by a box of zeros at its end, which readers skip; None if it has no place."""
    spare = size - len(body)
    if spare < HEADER:
        return None
    return body + spare.to_bytes(4, "big") + b"free" + bytes(spare - HEADER)
