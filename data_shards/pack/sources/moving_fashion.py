"""Moving fashion: videos in which a garment of Fashion-MNIST moves; the label is its direction.

The canvas is a torus: what leaves it on one side enters on the other. The garment starts anywhere on it, and
moves by the same whole number of pixels in every frame, in one of eight directions. So each frame alone is
distributed alike for all labels, and frames without their order tell the axis at most: a reversed video has
the opposite label, label + 4 modulo 8. The background stands still. The class of the garment is one more
number, `garment`, which a single frame does show.

Nothing else tells the label. Each frame is a key frame, as a predicted one would show where the garment was
before by its errors. All files have the same length, which a box of padding at the end makes. The video with
number i has label i modulo 8.

Video i of a split is a function of the seed and of i. Pixels and their conversion to the encoder's colours
are integers, and the encoder runs at a constant quantizer, so that one build of it gives the same bytes on
every machine; another build may give others. Training videos have garments of Fashion-MNIST's 60,000 training
images, those for validation of its 10,000 test images.

Legend: N videos, D frames of a video, G garments, S side of the canvas in pixels.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import SCALAR, VIDEO_AND_LABEL, Field
from data_shards.format.rng import Purpose, fold, hashes
from data_shards.format.samples import Samples, Source
from data_shards.image.geometry import Crop
from data_shards.pack.sources.garments import (
    Garment,
    Garments,
    Item,
    enlarge,
    garment_splits,
    paint,
    texture,
    within,
)
from data_shards.video.facts import LEAST_FRAMES, VideoFacts
from data_shards.video.library import pyav
from data_shards.video.prepare import PreparedVideo
from data_shards.video.write import Writer, i420, padded_mp4

VERSION = 2  # of the way in which a video is made
DIRECTIONS = {  # of the label's name: rows and columns of a step
    "right": (0, 1),
    "up right": (-1, 1),
    "up": (-1, 0),
    "up left": (-1, -1),
    "left": (0, -1),
    "down left": (1, -1),
    "down": (1, 0),
    "down right": (1, 1),
}
STEPS = tuple(DIRECTIONS.values())
GRAIN = 8  # levels of noise in the background
FPS = 25
QP, HARSHER = 24, 4  # x264's quantizer, and what is added to it while a file is too long
BITS = 3  # of a pixel in the length of a file
# The preset whose bytes are the same with and without the processor's instructions for vectors, which a test
# holds; others differ between them.
ENCODER = {"preset": "ultrafast", "x264-params": "psy=0:aq-mode=0:mbtree=0:trellis=0:scenecut=0"}
GARMENT = Field("garment", SCALAR)
Background = Literal["plain", "stripes"]
BACKGROUNDS: tuple[Background, ...] = get_args(Background)


@dataclass(frozen=True, kw_only=True)
class MotionOptions:
    """How videos are made; DataError for a value out of range.

    side: S, an even number.
    frames: D.
    speed: the range of the pixels that the garment moves by in a frame.
    garment: the range of its side in pixels.
    background: black, or stripes of two colours of the video's own.
    """

    side: int = 64
    frames: int = 16
    speed: tuple[int, int] = (1, 2)
    garment: tuple[int, int] = (24, 36)
    background: Background = "plain"

    def __post_init__(self) -> None:
        if not 16 <= self.side <= 1024 or self.side % 2:
            raise DataError(f"--motion-size ({self.side}) must be an even number of 16 ... 1024 pixels")
        if not LEAST_FRAMES <= self.frames <= 1000:
            raise DataError(f"--motion-frames ({self.frames}) must be in {LEAST_FRAMES} ... 1000")
        if not 1 <= self.speed[0] <= self.speed[1] < self.side / 2:
            text = f"--motion-speed {self.speed} must be 1 <= low <= high < {self.side / 2:g} pixels"
            raise DataError(f"{text}, half of the canvas, from where on a step is one of the other direction")
        if not 8 <= self.garment[0] <= self.garment[1] <= self.side:
            raise DataError(f"--motion-garment {self.garment} must be 8 <= low <= high <= {self.side} pixels")
        if self.background not in BACKGROUNDS:
            raise DataError(
                f"--motion-background ({self.background!r}) must be one of {', '.join(BACKGROUNDS)}"
            )

    @property
    def file_bytes(self) -> int:
        """The length of every file."""
        return 2048 + self.frames * (self.side**2 * BITS // 8 + 64)


class Motion(NamedTuple):
    """A garment in a video: where it is in frame 0, and the rows and columns of a step."""

    item: Item
    step: tuple[int, int]


@dataclass(frozen=True)
class MovingSamples:
    """The videos `rows` (N,) of a split."""

    rows: np.ndarray
    garments: Garments
    key: int
    options: MotionOptions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        video = encode(self.frames(i), self.options.file_bytes)
        garment = self.garments.label(self.motion(i).item.number)
        return {"video": video, "label": self.label(i), "garment": garment, **video.facts.members()}

    def frames(self, i: int) -> np.ndarray:
        """The frames of video i before they are encoded: (D, S, S, 3) uint8."""
        motion, background = self.motion(i), self.background(i)
        garment = enlarge(self.garments.image(motion.item.number), motion.item.place.height)
        return draw(background, garment, motion, self.options.frames)

    def background(self, i: int) -> np.ndarray:
        """What the garment of video i moves on: (S, S, 3) uint8."""
        side = self.options.side
        if self.options.background == "plain":
            return np.zeros((side, side, 3), dtype=np.uint8)
        return texture(fold(self.key, int(self.rows[i]), 1), side, side, GRAIN)

    def motion(self, i: int) -> Motion:
        """The garment of video i, and how it moves."""
        draws = hashes(fold(self.key, int(self.rows[i])), 8).tolist()
        side, speed = within(draws[0], self.options.garment), within(draws[1], self.options.speed)
        top, left = (draw % self.options.side for draw in draws[2:4])
        tint = np.array([within(draw, (64, 255)) for draw in draws[4:7]])
        down, right = STEPS[self.label(i)]
        return Motion(
            Item(draws[7] % self.garments.total, Crop(top, left, side, side), tint),
            (speed * down, speed * right),
        )

    def select(self, rows: np.ndarray) -> "MovingSamples":
        """The videos at `rows`, with the garments that they need."""
        chosen = replace(self, rows=self.rows[rows])
        needed = (chosen.motion(i).item.number for i in range(len(chosen)))
        return replace(chosen, garments=self.garments.only(needed))

    def describe(self, i: int) -> str:
        """Its number in the split."""
        return f"video {int(self.rows[i])}"

    def label(self, i: int) -> int:
        """The direction of video i."""
        return int(self.rows[i]) % len(STEPS)

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the files."""
        return np.full(len(self), self.options.file_bytes, dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the garments and of the numbers that decide every pixel."""
        text = (
            f"moving-fashion {VERSION} {self.rows.tolist()} {self.key} {self.options} {self.garments.digest}"
        )
        return hashlib.sha256(text.encode()).hexdigest()


def draw(background: np.ndarray, garment: Garment, motion: Motion, count: int) -> np.ndarray:
    """A garment that moves on a background (S, S, 3) uint8: (count, S, S, 3) uint8."""
    top, left, height, width = motion.item.place
    corner = motion.item._replace(place=Crop(0, 0, height, width))
    frames = np.empty((count, *background.shape), dtype=np.uint8)
    for number in range(count):
        place = top + number * motion.step[0], left + number * motion.step[1]
        # The torus is turned until the garment's place is its top left corner, and back.
        canvas = np.roll(background, (-place[0], -place[1]), axis=(0, 1))
        paint(canvas, corner, garment)
        frames[number] = np.roll(canvas, place, axis=(0, 1))
    return frames


def encode(frames: np.ndarray, file_bytes: int) -> PreparedVideo:
    """The MP4 of frames (D, S, S, 3) uint8, each a key frame, with exactly `file_bytes` bytes."""
    count, height, width, _ = frames.shape
    for quantizer in range(QP, 52, HARSHER):
        options = ENCODER | {"qp": str(quantizer)}
        writer = Writer(height, width, unit=Fraction(1, FPS), key_distance=1, options=options)
        for time, frame in enumerate(frames):
            writer.add(pyav().VideoFrame.from_ndarray(i420(frame), format="yuv420p"), time)
        if (body := padded_mp4(writer.finished(), file_bytes)) is not None:
            facts = VideoFacts(frames=count, fps_millis=1000 * FPS, height=height, width=width)
            return PreparedVideo(body=body, facts=facts)
    raise DataError(f"{count} frames of {height} x {width} pixels do not fit {file_bytes} bytes")


def moving_fashion(
    directory: str | Path | None = None,
    num_train: int = 4096,
    num_val: int = 512,
    options: MotionOptions | None = None,
    seed: int = 0,
) -> Source:
    """Videos of moving garments; `directory` as that of `fashion_mnist`, and so its errors."""
    options = options or MotionOptions()
    pyav()
    splits: dict[str, Samples] = {
        one.name: MovingSamples(
            rows=one.rows,
            garments=one.garments,
            key=fold(Purpose.MOTION, seed, one.stream),
            options=options,
        )
        for one in garment_splits(directory, num_train, num_val, "motion")
    }
    speed, garment = ("-".join(map(str, limits)) for limits in (options.speed, options.garment))
    description = (
        f"garments of Fashion-MNIST of {garment} pixels that move by {speed} pixels a frame on "
        f"{options.frames} frames of {options.side} pixels, seed {seed}"
    )
    fields = (*VIDEO_AND_LABEL, GARMENT)
    return Source("moving-fashion", description, tuple(DIRECTIONS), splits, fields=fields)
