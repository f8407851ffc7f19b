"""A video file in memory: its packets, and the frame that each of them shows.

A packet holds a frame as it is compressed. Packets lie in the order of decoding, frames are numbered in the
order of display, and B-frames make the two differ. All packets are listed first, which decodes nothing:
frame i is then the one with the i-th smallest time stamp, whatever the rate, and a key frame to start from is
known without a seek. Edit lists are applied by FFmpeg, and packets that they hide have no frame.

Legend: n frames of the video.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Any

from data_shards.errors import DataError
from data_shards.format.file_kinds import HEAD_BYTES, kind_of
from data_shards.image.formats import MAX_PIXELS
from data_shards.video.complete import check_complete
from data_shards.video.library import pyav

BUFFER = 2**18  # bytes that FFmpeg reads at once
AVI = "avi"
EBML = b"\x1a\x45\xdf\xa3"
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # a QuickTime file may lack ftyp


@dataclass(frozen=True)
class Packets:
    """The packets of an open video: `listed` in the order of decoding, and the facts of its stream.

    times: (n,) time stamps of the frames in the order of display, in units of `unit` seconds.
    places: (n,) the place of each frame's packet in `listed`.
    """

    stream: Any  # av.VideoStream
    listed: tuple[Any, ...]  # av.Packet
    times: tuple[int, ...]
    places: tuple[int, ...]
    unit: Fraction

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rate(self) -> Fraction:
        """Frames per second, from the first time stamp to the last; 0 where there is one frame."""
        if len(self) < 2:
            return Fraction(0)
        return (len(self) - 1) / ((self.times[-1] - self.times[0]) * self.unit)

    @property
    def keys(self) -> tuple[int, ...]:
        """The places of the key frames, from which decoding can start, in ascending order."""
        return tuple(place for place, packet in enumerate(self.listed) if packet.is_keyframe)


@contextmanager
def opened(body: bytes) -> Iterator[Packets]:
    """The packets of a video file; it is closed at the end.

    Raises:
        DataError: no video, damaged, of too many pixels. So is every error of FFmpeg inside of the context.
    """
    with readable(body) as stream:
        yield _listed(stream)


@contextmanager
def readable(body: bytes) -> Iterator[Any]:
    """The first video stream of a file, an `av.VideoStream`; errors as those of `opened`."""
    av, kind = pyav(), container_format(body)
    try:
        with av.open(BytesIO(body), format=kind, buffer_size=BUFFER, metadata_errors="replace") as container:
            if not container.streams.video:
                found = ", ".join(stream.type for stream in container.streams) or "nothing"
                raise DataError(f"a file without a video stream: it has {found}")
            stream = container.streams.video[0]
            _check_stream(stream)
            yield stream
    except AssertionError:
        raise
    except Exception as error:  # a decoder may raise any
        check_complete(body)  # of a file that was cut short this is the better reason
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"a video that cannot be read ({reason})") from error


def container_format(body: bytes) -> str:
    """FFmpeg's name of a file's container, by its first bytes; DataError for what holds no video.

    No other reader of FFmpeg is started: some of them open further files, whose names a file states.
    """
    if body[4:8] in MP4_BOXES:
        return "mp4"
    if body[:4] == EBML:
        return "matroska"
    if body[:4] == b"RIFF" and body[8:11] == b"AVI":
        return AVI
    what = kind_of(body[:HEAD_BYTES]) or f"it begins with {body[:8]!r}"
    raise DataError(f"no video of MP4, Matroska, WebM or AVI: {what}")


def _check_stream(stream: Any) -> None:
    """Decode in one thread, as many videos are decoded at a time; DataError for too many pixels."""
    decoder = stream.codec_context
    if decoder is None:
        raise DataError("a video whose codec FFmpeg does not know")
    decoder.thread_count = 1
    check_pixels(decoder.width, decoder.height)


def check_pixels(width: int, height: int) -> None:
    """DataError for frames of too many pixels."""
    if width * height > MAX_PIXELS:
        raise DataError(f"a video of {width} x {height} pixels, more than {MAX_PIXELS}")


def check_same_size(first: tuple[int, int], other: tuple[int, int]) -> None:
    """DataError where the heights and widths of two frames differ."""
    if first != other:
        sizes = " and ".join(f"{height} x {width}" for height, width in (first, other))
        raise DataError(f"a video with frames of {sizes} pixels; write it again with one size")


def check_intact(frame: Any) -> None:
    """DataError for an `av.VideoFrame` that the decoder has mended."""
    if frame.is_corrupt:
        raise DataError(f"a damaged video: the frame at {frame.time or 0:.3f} s is corrupt")


def _listed(stream: Any) -> Packets:
    """The packets of a stream; DataError where frames cannot be told by their time stamps."""
    listed = tuple(packet for packet in stream.container.demux(stream) if packet.size)
    shown = [place for place, packet in enumerate(listed) if not packet.is_discard]
    if not shown:
        raise DataError("a video without frames")
    if any(listed[place].pts is None for place in shown):
        raise DataError("a video whose frames have no time stamps; write it as MP4 again")
    shown.sort(key=lambda place: listed[place].pts)
    times = tuple(listed[place].pts for place in shown)
    if len(set(times)) < len(times):
        twice = next(i for i in range(1, len(times)) if times[i] == times[i - 1])
        raise DataError(f"a video whose frames {twice - 1} and {twice} have one time stamp; write it again")
    if not listed[0].is_keyframe:
        raise DataError("a video that does not begin with a key frame, so that it cannot be decoded; cut it")
    return Packets(stream, listed, times, tuple(shown), stream.time_base)


def start_of(packets: Packets, frame: int) -> int:
    """The place of the last key frame from which a frame can be decoded.

    It is decoded no later than the frame, and is shown no later: what follows a key frame in the file but is
    shown before it needs the pictures before (an open group of pictures).
    """
    keys, place, time = packets.keys, packets.places[frame], packets.times[frame]
    for key in reversed(keys[: bisect_right(keys, place)]):
        if packets.listed[key].pts is not None and packets.listed[key].pts <= time:
            return key
    return 0
