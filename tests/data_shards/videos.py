"""Small videos whose frames say their number: eight gray blocks are its bits, which lossy codecs keep.

Legend: n frames, H, W height and width of a frame in pixels.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cache

import av
import numpy as np

MILLI = Fraction(1, 1000)
FRAME_MS = 40
# So that key frames come by `gop` alone: every frame differs from the one before like another scene.
NO_SCENE_CUTS = {"libx264": {"sc_threshold": "0"}, "mpeg4": {"sc_threshold": "1000000000"}}


def coded_frame(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """(H, W, 3) uint8: two rows of four blocks, bit b of the number in block b."""
    image = np.full((height, width, 3), 30, dtype=np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            image[block(bit, height, width)] = 210
    return image


def number_of(frame: np.ndarray) -> int:
    """The number of a decoded frame (H, W, 3)."""
    height, width = frame.shape[:2]
    return sum(int(frame[block(bit, height, width)].mean() > 120) << bit for bit in range(8))


def block(bit: int, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of the block of a bit, inside of its border."""
    row, column = divmod(bit, 4)
    top, left = row * height // 2, column * width // 4
    return slice(top + 2, top + height // 2 - 2), slice(left + 2, left + width // 4 - 2)


def times_of(count: int, variable: bool) -> list[int]:
    """Time stamps in ms: every 40 ms, or at gaps of 40, 59, 21 ms."""
    return [FRAME_MS * i + (0, 0, 19)[i % 3] * variable for i in range(count)]


@cache
def coded_video(
    count: int = 20,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    sides: tuple[int, int] = (32, 48),
    gop: int = 8,
    b_frames: int = 2,
    variable: bool = False,
    rotation: int = 0,
    options: tuple[tuple[str, str], ...] = (),
    times: tuple[int, ...] = (),
) -> bytes:
    """The file of a video of `count` frames; `times` are its time stamps in ms."""
    frames = [coded_frame(i, *sides) for i in range(count)]
    stamps = list(times) or times_of(count, variable)
    return write_video(
        np.stack(frames) if frames else np.zeros((0, *sides, 3), np.uint8),
        stamps,
        codec=codec,
        container=container,
        gop=gop,
        b_frames=b_frames,
        rotation=rotation,
        options=dict(options),
    )


def write_video(
    frames: np.ndarray,
    times: list[int],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    gop: int = 8,
    b_frames: int = 2,
    rotation: int = 0,
    options: Mapping[str, str] | None = None,
    pix_fmt: str = "yuv420p",
) -> bytes:
    """A video file of frames (n, H, W, 3) with time stamps in ms; those of an AVI are its frame numbers."""
    file = io.BytesIO()
    unit = Fraction(FRAME_MS, 1000) if container == "avi" else MILLI
    with same_scheduling(), av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=1000 // FRAME_MS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        context = stream.codec_context
        context.thread_count, context.gop_size, context.max_b_frames = 1, gop, b_frames
        context.time_base = unit
        stream.options = {**NO_SCENE_CUTS.get(codec, {}), **(options or {})}
        if rotation:
            stream.set_display_rotation(rotation)
        for number, (pixels, time) in enumerate(zip(frames, times, strict=True)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number if container == "avi" else time, unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Undo what libsvtav1 does for root: from then on its caller runs in real time, before all others."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@cache
def sound_file() -> bytes:
    """An MP4 with sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
