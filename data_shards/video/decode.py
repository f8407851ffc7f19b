"""The frames of a video by their numbers: `frames = decode_frames(body, [0, 2, 4])`, by PyAV.

Decoding starts at the last key frame before a frame and ends with it. Pictures between that no other one is
predicted from are skipped where they are not asked for, which changes no pixel of the others. One thread
decodes a video, and a video that its metadata turns by a multiple of 90 degrees is turned. Colours are those
of FFmpeg's conversion to RGB, as most tools have them.

Legend: n frames of the video, k of them asked for; H, W height and width of a frame in pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.video.container import Packets, check_intact, check_same_size, opened, start_of
from data_shards.video.library import pyav

SKIPPING = ("h264", "hevc", "mpeg4")  # decoders that decide on a packet before they are given the next one


def decode_frames(body: bytes, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The frames of a video with the numbers `indices`, in that order: (k, H, W, 3) uint8 RGB.

    Args:
        body: of the file: MP4, Matroska, WebM or AVI, of any codec of FFmpeg.
        indices: (k,) numbers of frames in the order of display, from 0; any order, one may come twice.

    Raises:
        DataError: a number beyond the video, a damaged video, frames of different sizes.
    """
    with opened(body) as packets:
        return frames_of(packets, indices)


def count_frames(body: bytes) -> int:
    """The number of frames of a video, from its packets alone; DataError when it cannot be read."""
    with opened(body) as packets:
        return len(packets)


def frames_of(packets: Packets, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """`decode_frames` of an open video."""
    wanted, where = sorted_numbers(indices, len(packets))
    found, rotation = _pixels(packets, wanted.tolist())
    frames = turned(found, rotation)
    in_order = len(where) == len(wanted) and (where[1:] > where[:-1]).all()
    return frames if in_order else frames[where]


def sorted_numbers(indices: Sequence[int] | np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct frames of a video of `count` in ascending order, and the row there of each of `indices`.

    Raises:
        DataError: none, or one beyond the video.
    """
    wanted, where = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= count:
        raise DataError(f"frames {wanted.tolist()} of a video with frames 0 ... {count - 1}")
    return wanted, where


def turned(frames: np.ndarray, rotation: int) -> np.ndarray:
    """Frames (k, H, W, 3) turned counterclockwise by `rotation` degrees: (k, H, W, 3), or (k, W, H, 3)."""
    if rotation % 90:
        raise DataError(
            f"a video that its metadata turns by {rotation} degrees; only multiples of 90 are read"
        )
    return np.ascontiguousarray(np.rot90(frames, rotation // 90 % 4, axes=(1, 2)))


def _pixels(packets: Packets, wanted: list[int]) -> tuple[np.ndarray, int]:
    """The frames `wanted`, in ascending order: (k, H, W, 3) uint8 as they are stored, and their rotation."""
    convert, pixels, rotation = pyav().video.reformatter.VideoReformatter(), None, 0
    row_of = {packets.times[frame]: row for row, frame in enumerate(wanted)}
    for frame in _decoded(packets, wanted):
        row = row_of.pop(frame.pts)
        # A converter for all frames, without threads: each frame's own starts threads, 15 x slower.
        rgb = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if pixels is None:
            pixels, rotation = np.empty((len(wanted), *rgb.shape), dtype=np.uint8), frame.rotation
        check_same_size(pixels.shape[1:3], rgb.shape[:2])
        pixels[row] = rgb
    if row_of or pixels is None:
        lost = wanted[min(row_of.values())]
        raise DataError(f"a damaged video: frame {lost} of {len(packets)} cannot be decoded")
    return pixels, rotation


def _decoded(packets: Packets, wanted: list[int]) -> Iterator[Any]:
    """The frames `wanted` as FFmpeg gives them, in the order of display in each run from a key frame."""
    runs: dict[int, list[int]] = {}
    for frame in wanted:
        runs.setdefault(start_of(packets, frame), []).append(frame)
    for start, frames in runs.items():
        yield from _run(packets, start, frames)


def _run(packets: Packets, start: int, frames: list[int]) -> Iterator[Any]:
    """Frames that are decoded from one key frame on; at the end the decoder is empty again."""
    decoder, times = packets.stream.codec_context, {packets.times[frame] for frame in frames}
    skips = decoder.name in SKIPPING
    last = max(packets.places[frame] for frame in frames)
    for packet in (*packets.listed[start : last + 1], None):
        if packet is not None and skips:
            decoder.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
        for frame in decoder.decode(packet):
            if frame.pts in times:
                check_intact(frame)
                yield frame
    decoder.flush_buffers()
