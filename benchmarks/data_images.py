"""JPEGs like ImageNet's, made from noise, and the data set of them that every contender reads.

A picture is a Gaussian field whose amplitude falls as 1/f (natural images: Field, "Relations between the
statistics of natural images and the response properties of cortical cells", JOSA A 1987), nearly the same in
all colours; with white noise entropy decoding, three quarters of the work, would cost too much. Sizes and
qualities are chosen for ImageNet's averages: about 200 kpx and 100 KB, 30 % without chroma subsampling.
H, W = height and width in pixels.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import simplejpeg

SIDES = (
    (375, 500),
    (500, 375),
    (500, 334),
    (333, 500),
    (500, 400),
    (480, 640),
    (400, 300),
    (500, 500),
    (400, 600),
)
SLOPE, COLOUR_SLOPE = 1.2, 1.3  # of the spectra; a field has no edges, so it falls a little faster than 1 / f
CONTRAST, COLOUR = 50.0, 0.25  # standard deviation in gray levels; share of a channel's own field
QUALITIES = (80, 85, 88, 91, 94)


def field(height: int, width: int, generator: np.random.Generator, slope: float) -> np.ndarray:
    """Noise of amplitude 1 / f^slope, mean 0 and deviation 1: (H, W) float64."""
    f = np.hypot(np.fft.fftfreq(height)[:, None] * height / width, np.fft.rfftfreq(width)) * width
    amplitude = np.maximum(f, 1.0) ** -slope
    amplitude[0, 0] = 0.0
    waves = generator.standard_normal((2, *amplitude.shape))
    noise = np.fft.irfft2((waves[0] + 1j * waves[1]) * amplitude, s=(height, width))
    return noise / noise.std()


def picture(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8."""
    gray = field(height, width, generator, SLOPE)
    channels = [gray + COLOUR * field(height, width, generator, COLOUR_SLOPE) for _ in range(3)]
    return np.clip(118 + CONTRAST * np.stack(channels, -1), 0, 255).astype(np.uint8)


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """`count` JPEGs; three of ten are 4:4:4, the others 4:2:0."""
    generator = np.random.default_rng(seed)
    made = []
    for i in range(count):
        height, width = SIDES[generator.integers(len(SIDES))]
        body = simplejpeg.encode_jpeg(
            picture(height, width, generator),
            quality=int(generator.choice(QUALITIES)),
            colorsubsampling="444" if i % 10 < 3 else "420",
        )
        made.append(body)
    return made


@dataclass(frozen=True)
class JpegSamples:
    """`count` samples that are `bodies` over and over: data_shards.format.samples.Samples."""

    bodies: list[bytes]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, bytes | int]:
        return {"image": self.bodies[self.rows[i] % len(self.bodies)], "label": self.label(i)}

    def select(self, rows: np.ndarray) -> "JpegSamples":
        """The samples at `rows`."""
        return JpegSamples(self.bodies, self.rows[rows])

    def describe(self, i: int) -> str:
        """Its number."""
        return f"image {self.rows[i]}"

    def label(self, i: int) -> int:
        """Its number in a thousand classes."""
        return int(self.rows[i] % 1000)

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of each JPEG."""
        return np.array([len(self[i]["image"]) for i in range(len(self))], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the JPEGs and their number."""
        sha = hashlib.sha256(str(len(self)).encode())
        for body in self.bodies:
            sha.update(body)
        return sha.hexdigest()
