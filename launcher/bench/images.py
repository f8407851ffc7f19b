"""The images of a bench, in memory: files of the user's, or synthetic ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from data_shards.errors import DataError
from data_shards.image.encode import encode_jpeg
from data_shards.pack.sources.registry import synthetic
from launcher.config.errors import ConfigError
from launcher.console.counts import counted

MOST = 256  # images that are held
SYNTHETIC = 32
SIDE = 500  # of synthetic images, in pixels: they have about as many bytes as a photo of ImageNet


@dataclass(frozen=True, kw_only=True)
class BenchImages:
    """The files of at least one image; a bench that needs more starts again with the first."""

    names: tuple[str, ...]
    bodies: tuple[bytes, ...]
    text: str  # what they are, for a person

    def batch(self, size: int, number: int) -> list[bytes]:
        """The images of call `number` of `size` images."""
        first = size * number
        return [self.bodies[place % len(self.bodies)] for place in range(first, first + size)]


def bench_images(places: Sequence[str] | None, side: int = SIDE) -> BenchImages:
    """Read the images of a bench.

    Args:
        places: see `launcher.predict.inputs.image_inputs`; None makes synthetic images.
        side: of synthetic images.

    Raises:
        ConfigError: there is nothing at a place, or an image cannot be read.
    """
    return made(SYNTHETIC, side) if places is None else read(places)


def made(number: int, side: int) -> BenchImages:
    """Synthetic images as JPEG files, always the same ones."""
    split = synthetic(number, 1, num_classes=10, image_size=side).splits["train"]
    bodies = tuple(encode_jpeg(split[i]["image"], quality=90, subsampling="420") for i in range(number))
    names = tuple(f"synthetic image {i}" for i in range(number))
    return BenchImages(names=names, bodies=bodies, text=f"{number} synthetic JPEGs of {side} x {side} pixels")


def read(places: Sequence[str]) -> BenchImages:
    """The first MOST images at some places."""
    from launcher.predict.inputs import image_inputs  # which imports torch

    names, bodies = [], []
    for image in islice(image_inputs(places), MOST):
        try:
            bodies.append(image.read())
        except (DataError, OSError) as error:
            raise ConfigError(f"{image.name} cannot be read: {error}; leave it out of --files") from error
        names.append(image.name)
    if not names:
        raise ConfigError("--files: there is no image")
    size_kb = sum(map(len, bodies)) / len(bodies) / 1e3
    text = f"{counted(len(names), 'image')} of --files, {size_kb:.1f} KB each on average"
    return BenchImages(names=tuple(names), bodies=tuple(bodies), text=text)
