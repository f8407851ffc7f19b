"""Which frames of a video are a clip: the index rules of Video Swin, which are those of mmaction2.

    random     a window of `frames` x `interval`, its start uniform: training on Kinetics
    uniform    windows whose starts lie evenly, in the middle of `clips` parts of all starts: testing
    segments   a frame of each of `frames` equal parts of the video, as SlowFast does for Something-Something:
               a random one with a key, without one the middle

A video that is shorter than the window begins again at its first frame. Source: "Video Swin Transformer" (Liu
et al., arXiv:2106.13230), section 4.1, and its published code.

Legend: n frames of the video, V clips, D frames of a clip.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, uniform

Mode = Literal["random", "uniform", "segments"]
START = 0  # number of the draw of a window's start; the draws of segment i are numbers i


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """How the frames of clips are chosen; DataError for a value out of range.

    frames: D, of a clip.
    interval: of neighbouring frames of a window, in frames of the video; `segments` has none.
    clips: V, of a video; more than one only without draws, as `uniform` takes them.
    mode: see above.
    fps: count as if every video had so many frames a second, its nearest ones taken; 0 takes each as it is.
    """

    frames: int = 32
    interval: int = 2
    clips: int = 1
    mode: Mode = "random"
    fps: float = 0.0

    def __post_init__(self) -> None:
        for option, value in {"frames": self.frames, "interval": self.interval, "clips": self.clips}.items():
            if value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        if self.mode not in get_args(Mode):
            raise DataError(f"mode ({self.mode!r}) must be one of {', '.join(get_args(Mode))}")
        if self.clips > 1 and self.mode != "uniform":
            raise DataError(f"clips ({self.clips}) must be 1 for mode {self.mode}; uniform takes several")
        if not 0 <= self.fps <= 1000:
            raise DataError(f"fps ({self.fps}) must be in 0 ... 1000; 0 takes the frames as they are")

    @property
    def span(self) -> int:
        """The frames that a window covers; the last `interval` - 1 of them are not shown."""
        return self.frames * self.interval

    def indices(self, count: int, rate: float = 0.0, key: DrawKey | None = None) -> np.ndarray:
        """The numbers of the frames of the clips of a video: (V, D) int64.

        Args:
            count: n, frames of the video.
            rate: its frames per second, which only `fps` needs.
            key: of the draws of `random` and `segments`; None takes what is in the middle.

        Raises:
            DataError: a video without frames; one without a rate where `fps` is given.
        """
        if count < 1:
            raise DataError("a video without frames")
        if not self.fps:
            return self._of(count, key)
        if not rate > 0:
            raise DataError(f"a video without a frame rate, which fps={self.fps:g} needs")
        resampled = max(1, round(count * self.fps / rate))
        source = ((np.arange(resampled) + 0.5) * count / resampled).astype(np.int64)
        return source[self._of(resampled, key)]

    def _of(self, count: int, key: DrawKey | None) -> np.ndarray:
        if self.mode == "segments":
            return self._segments(count, key)[None]
        starts = self._starts(count) if self.mode == "uniform" or key is None else self._start(count, key)
        return (starts[:, None] + self.interval * np.arange(self.frames)) % count

    def _start(self, count: int, key: DrawKey) -> np.ndarray:
        """A start of which all are equally likely, from 0 to the last whose window fits: (1,) int64."""
        room = max(0, count - self.span) + 1
        return np.array([int(uniform(key.draws(Purpose.CLIP), START) * room)])

    def _starts(self, count: int) -> np.ndarray:
        """The starts int((i + 1/2) (n - span + 1) / V), all 0 in a video that no window fits: (V,) int64."""
        room = count - self.span + 1
        if room <= 0:
            return np.zeros(self.clips, dtype=np.int64)
        # As mmaction2 computes them, in floating point: the same starts where a product ends at a whole one.
        step = room / self.clips
        return (np.arange(self.clips) * step + step / 2).astype(np.int64)

    def _segments(self, count: int, key: DrawKey | None) -> np.ndarray:
        """A frame of each of D parts of (n - 1) / D frames, both rounded ends included: (D,) int64."""
        ends = np.round(np.arange(self.frames + 1) * ((count - 1) / self.frames)).astype(np.int64)
        first, last = ends[:-1], ends[1:]
        if key is None:
            return (first + last) // 2
        draws = key.draws(Purpose.CLIP)
        share = np.array([uniform(draws, number) for number in range(self.frames)])
        return first + (share * (last - first + 1)).astype(np.int64)
