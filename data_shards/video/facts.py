"""What is known of a video: its frames, their rate and their size, counted and not taken from a header.

Legend: n frames of the video; H, W height and width of a frame in pixels.
"""

from dataclasses import dataclass
from fractions import Fraction

from data_shards.errors import DataError
from data_shards.video.container import Packets, check_intact, check_same_size, opened
from data_shards.video.decode import frames_of

LEAST_FRAMES = 2
RATES = Fraction(1, 10), Fraction(1000)  # frames per second that are believed


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """The facts of a video; `fps_millis` is 1000 times its mean frames per second, rounded."""

    frames: int
    fps_millis: int
    height: int
    width: int

    @property
    def duration_s(self) -> float:
        """The seconds that all frames are shown for, each as long as the mean."""
        return 1000 * self.frames / self.fps_millis

    def members(self) -> dict[str, int]:
        """The numbers of a sample, as the fields `VIDEO_FACTS` of data_shards/format/fields.py name them."""
        return {
            "frames": self.frames,
            "fps_millis": self.fps_millis,
            "height": self.height,
            "width": self.width,
        }


def read_facts(body: bytes, *, decode: bool = True) -> VideoFacts:
    """The facts of a video file.

    Args:
        body: of the file.
        decode: decode every frame, so that each is known to be intact; otherwise the first one only.

    Raises:
        DataError: no video, fewer than two frames, a rate that cannot be, frames that cannot be decoded.
    """
    with opened(body) as packets:
        return facts_of(packets, decode=decode)


def facts_of(packets: Packets, *, decode: bool = True) -> VideoFacts:
    """`read_facts` of an open video."""
    if len(packets) < LEAST_FRAMES:
        raise DataError(f"a video of {len(packets)} frame; a clip needs {LEAST_FRAMES} or more")
    if not RATES[0] <= packets.rate <= RATES[1]:
        text = f"a video of {float(packets.rate):g} frames per second"
        raise DataError(f"{text}, which must be in {float(RATES[0])} ... {RATES[1]}; write it again")
    height, width = frames_of(packets, [0]).shape[1:3]
    if decode:
        _decode_all(packets)
    rate = round(1000 * packets.rate)
    return VideoFacts(frames=len(packets), fps_millis=rate, height=height, width=width)


def _decode_all(packets: Packets) -> None:
    """DataError unless each packet gives its frame, intact and of the size of the others."""
    decoder, left, size = packets.stream.codec_context, set(packets.times), None
    for packet in (*packets.listed, None):
        for frame in decoder.decode(packet):
            check_intact(frame)
            left.discard(frame.pts)
            size = size or (frame.height, frame.width)
            check_same_size(size, (frame.height, frame.width))
    if left:
        text = f"a damaged video: {len(left)} of {len(packets)} frames cannot be decoded"
        raise DataError(f"{text}, the first is number {packets.times.index(min(left))}")
