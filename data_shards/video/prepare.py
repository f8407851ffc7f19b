"""From a video file of a source to what is packed: an MP4, as it is or encoded again, and its facts.

    short_side 0   an MP4 is copied byte for byte; the packets of Matroska and WebM are copied into an MP4
                   that can hold their codec; all else is encoded again, at its size
    short_side S   encoded again as H.264 with a key frame every `key_distance` frames, a longer short side
                   shrunk to S pixels: a clip is decoded from the key frame before it

The frames keep their number and their time stamps. Sound and other streams are left out where the file is not
copied. A video that its metadata turns is turned where it is encoded, and by the reader where it is copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

from data_shards.errors import DataError
from data_shards.video.complete import check_complete
from data_shards.video.container import (
    AVI,
    check_intact,
    check_same_size,
    container_format,
    opened,
    readable,
)
from data_shards.video.decode import turned
from data_shards.video.facts import VideoFacts, facts_of, read_facts
from data_shards.video.library import pyav
from data_shards.video.write import Writer, check_encoder, copy_packets

CHECKS = ("decode", "header", "none")
IN_MP4 = ("h264", "hevc", "vp9", "av1")  # codecs whose packets an MP4 takes as they are
PRESET = "fast"  # of x264
MOST_CRF = 51


@dataclass(frozen=True, kw_only=True)
class VideoRecipe:
    """The processing of every video; DataError for a value out of range.

    short_side: pixels; 0 copies.
    key_distance: frames from one key frame to the next where it is encoded again.
    crf: x264's constant rate factor, 0 ... 51; FFmpeg's default is 23.
    check: "decode" decodes every frame of what is packed; "header" and "none" only the first.
    """

    short_side: int = 0
    key_distance: int = 32
    crf: int = 23
    check: str = "decode"

    def __post_init__(self) -> None:
        if self.short_side < 0 or self.short_side % 2:
            text = f"--video-side ({self.short_side}) must be an even number of pixels, as H.264 needs"
            raise DataError(f"{text}, or 0 to copy")
        if self.key_distance < 1:
            raise DataError(f"--video-key-distance ({self.key_distance}) must be at least 1 frame")
        if not 0 <= self.crf <= MOST_CRF:
            raise DataError(f"--video-crf ({self.crf}) must be in 0 ... {MOST_CRF}")
        if self.check not in CHECKS:
            raise DataError(f"check must be one of {', '.join(CHECKS)} (got {self.check!r})")

    def __str__(self) -> str:
        if not self.short_side:
            return "copied"
        return f"short side {self.short_side}, key distance {self.key_distance}, crf {self.crf}"


@dataclass(frozen=True, kw_only=True)
class PreparedVideo:
    """An MP4 file that has been checked, and its facts."""

    body: bytes
    facts: VideoFacts

    def members(self) -> dict[str, Any]:
        """The members of a sample but its label."""
        return {"video": self, **self.facts.members()}


def check_tools(recipe: VideoRecipe) -> None:
    """DataError where PyAV, or the encoder that the recipe needs, is not installed."""
    pyav()
    if recipe.short_side:
        check_encoder()


def prepare_video(body: bytes, recipe: VideoRecipe) -> PreparedVideo:
    """The video to pack of a file; DataError, one line, where it is none or damaged."""
    kind = container_format(body)
    check_complete(body)
    if not recipe.short_side:
        if body[4:8] == b"ftyp":
            return PreparedVideo(body=body, facts=read_facts(body, decode=recipe.check == "decode"))
        if kind != AVI and (copied := _copied(body, recipe)):
            return copied
    return _encoded(body, recipe)


def _copied(body: bytes, recipe: VideoRecipe) -> PreparedVideo | None:
    """The packets in an MP4; None for a codec that it does not hold. DataError unless it has all frames."""
    with opened(body) as packets:
        if packets.stream.codec_context.codec.canonical_name not in IN_MP4:
            return None
        before = facts_of(packets, decode=False)
        copied = copy_packets(packets.stream, packets.listed)
    return _checked(copied, before.frames, recipe)


def _encoded(body: bytes, recipe: VideoRecipe) -> PreparedVideo:
    """The frames, turned and shrunk, as H.264."""
    with readable(body) as stream:
        frames = _upright_frames(stream)
        if (first := next(frames, None)) is None:
            raise DataError("a video without frames")
        size, unit = _packed_size(first, recipe.short_side), _unit(stream)
        options = {"preset": PRESET, "crf": str(recipe.crf)}
        writer = Writer(*size, unit=unit, key_distance=recipe.key_distance, options=options)
        count, before = 0, None
        for time, frame in _timed(stream, chain([first], frames)):
            check_same_size((first.height, first.width), (frame.height, frame.width))
            if time is None or (before is not None and time <= before):
                raise DataError(f"a video whose frame {count} has no later time stamp than the one before")
            writer.add(_resized(frame, *size), time)
            count, before = count + 1, time
        encoded = writer.finished()
    return _checked(encoded, count, recipe)


def _checked(body: bytes, frames: int, recipe: VideoRecipe) -> PreparedVideo:
    """What has been written; DataError unless it has as many frames as its source."""
    facts = read_facts(body, decode=recipe.check == "decode")
    if facts.frames != frames:
        raise DataError(f"a video of {frames} frames, of which {facts.frames} could be written")
    return PreparedVideo(body=body, facts=facts)


def _upright_frames(stream: Any) -> Iterator[Any]:
    """The frames of a stream in the order of display, turned as its metadata says."""
    for frame in stream.container.decode(stream):
        check_intact(frame)
        if not frame.rotation:
            yield frame
            continue
        pixels = turned(frame.to_ndarray(format="rgb24")[None], frame.rotation)[0]
        upright = pyav().VideoFrame.from_ndarray(pixels, format="rgb24")
        upright.pts = frame.pts
        yield upright


def _is_avi(stream: Any) -> bool:
    return stream.container.format.name == AVI


def _unit(stream: Any) -> Fraction:
    """The unit of the time stamps in seconds; an AVI has a frame rate and no time stamps."""
    if not _is_avi(stream):
        return Fraction(stream.time_base)
    if not stream.average_rate:
        raise DataError("an AVI without a frame rate; write it again")
    return 1 / Fraction(stream.average_rate)


def _timed(stream: Any, frames: Iterator[Any]) -> Iterator[tuple[int | None, Any]]:
    """The frames with their time stamps."""
    for number, frame in enumerate(frames):
        yield number if _is_avi(stream) else frame.pts, frame


def _packed_size(frame: Any, short_side: int) -> tuple[int, int]:
    """Height and width, even as 4:2:0 needs: the short side at most `short_side`, where that is not 0."""
    short = min(frame.height, frame.width)
    scale = min(1.0, short_side / short) if short_side else 1.0
    height, width = (max(2, 2 * round(side * scale / 2)) for side in (frame.height, frame.width))
    return height, width


def _resized(frame: Any, height: int, width: int) -> Any:
    """A frame of format yuv420p of this size, by FFmpeg's bicubic resize."""
    reformatter = pyav().video.reformatter
    bicubic = reformatter.Interpolation.BICUBIC
    return reformatter.VideoReformatter().reformat(
        frame, width=width, height=height, format="yuv420p", interpolation=bicubic, threads=1
    )
