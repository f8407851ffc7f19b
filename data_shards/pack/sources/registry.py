"""The sources that can be packed. One of your own is a function, which `--source MODULE:FUNCTION` names.

A source gives, for every split, a list of samples (format/samples.py) that can be indexed in any order,
so that any worker can make any shard. H, W = height and width in pixels.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import Purpose, fold, hashes
from data_shards.format.samples import ArraySamples, Samples, Source
from data_shards.pack.sources.ade20k import ade20k
from data_shards.pack.sources.coco import coco
from data_shards.pack.sources.fashion_canvas import fashion_canvas
from data_shards.pack.sources.fashion_mnist import FASHION_CLASSES, read_splits
from data_shards.pack.sources.fashion_scenes import fashion_scenes
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.imagenet import imagenet22k, imagenet_zip
from data_shards.pack.sources.imagenet1k import imagenet
from data_shards.pack.sources.kinetics import kinetics
from data_shards.pack.sources.members import member_folders
from data_shards.pack.sources.moving_fashion import moving_fashion
from data_shards.pack.sources.packed import packed_source
from data_shards.pack.sources.something_something import something_something
from parallel.counter_rng import splitmix64
from parallel.plug_ins import UnknownNameError, imported, path_of

__all__ = ["SOURCES", "ArraySamples", "Samples", "Source", "fashion_mnist", "synthetic"]


@dataclass(frozen=True)
class SyntheticSamples:
    """Coloured gratings whose direction and colour tell the class, under noise; in integers throughout.

    Sample i of the split has label i mod num_classes; `rows` (N,) are the numbers of these samples.
    """

    rows: np.ndarray
    num_classes: int
    image_size: int
    key: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        row, side = int(self.rows[i]), self.image_size
        label = row % self.num_classes
        noise = hashes(fold(self.key, row), side * side * 3 + 1)
        wave = _triangle_wave(
            label, self.num_classes, side, int(noise[0] % np.uint64(256))
        )  # (H, W), 0 ... 128
        tint = np.array([64 + splitmix64(fold(label, channel)) % 128 for channel in range(3)])  # (3,)
        speckle = (noise[1:] % np.uint64(64)).astype(np.int64).reshape(side, side, 3)  # 0 ... 63
        image = (wave[:, :, None] * tint // 128 + speckle).astype(np.uint8)  # at most 191 + 63
        return {"image": image, "label": label}

    def select(self, rows: np.ndarray) -> "SyntheticSamples":
        """The samples at `rows`."""
        return SyntheticSamples(self.rows[rows], self.num_classes, self.image_size, self.key)

    def describe(self, i: int) -> str:
        """Its number in the split."""
        return f"image {int(self.rows[i])}"

    def label(self, i: int) -> int:
        """The label of sample i."""
        return int(self.rows[i]) % self.num_classes

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the pixels."""
        return np.full(len(self), 3 * self.image_size**2, dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the numbers that decide every pixel."""
        text = f"synthetic 1 {len(self)} {self.num_classes} {self.image_size} {self.key}"
        return hashlib.sha256(text.encode()).hexdigest()


def _triangle_wave(label: int, num_classes: int, side: int, phase: int) -> np.ndarray:
    """(side, side) int64 in 0 ... 128: three or so periods across the image in the direction of the class."""
    angle = np.pi * label / num_classes
    step = 256 * 3 / side
    y, x = np.mgrid[0:side, 0:side]
    turn = round(step * np.cos(angle)) * x + round(step * np.sin(angle)) * y + phase
    return np.abs(turn % 256 - 128)


def fashion_mnist(directory: str | Path | None = None) -> Source:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 28x28 gray, 60,000 and 10,000.

    `directory` holds its four idx-ubyte files, gzipped or not; None takes the files of the Debian package,
    or else downloads them. DataError when neither works: no other images are ever used instead.
    """
    splits = {split: ArraySamples(*arrays) for split, arrays in read_splits(directory).items()}
    return Source("fashion-mnist", "Fashion-MNIST, arXiv:1708.07747", FASHION_CLASSES, splits)


def synthetic(num_train: int, num_val: int, num_classes: int, image_size: int, seed: int = 0) -> Source:
    """Synthetic images that a network can learn to classify; the manifest names them synthetic."""
    for option, value in {
        "train": num_train,
        "classes": num_classes,
        "size": image_size,
    }.items():
        if value < 1:
            raise DataError(f"--synthetic-{option} ({value}) must be at least 1")
    splits = {
        split: SyntheticSamples(
            np.arange(count), num_classes, image_size, fold(Purpose.SYNTHETIC, seed, stream)
        )
        for stream, (split, count) in enumerate({"train": num_train, "val": num_val}.items())
    }
    classes = tuple(f"grating-{label}" for label in range(num_classes))
    return Source("synthetic", f"synthetic gratings {image_size}x{image_size}, seed {seed}", classes, splits)


GROUP = "swin_moe.sources"  # entry points of other packages
SOURCES: Mapping[str, Callable[..., Source]] = {
    "ade20k": ade20k,
    "coco": coco,
    "fashion-canvas": fashion_canvas,
    "fashion-mnist": fashion_mnist,
    "fashion-scenes": fashion_scenes,
    "folder": image_folder,
    "imagenet": imagenet,
    "imagenet-zip": imagenet_zip,
    "imagenet22k": imagenet22k,
    "kinetics": kinetics,
    "members": member_folders,
    "moving-fashion": moving_fashion,
    "shards": packed_source,
    "something-something": something_something,
    "synthetic": synthetic,
}


def find_source(name: str) -> Callable[..., Source]:
    """The function of a source.

    Args:
        name: an entry of SOURCES, an entry point of the group `swin_moe.sources`, or a dotted path
            MODULE:FUNCTION. A function of another package is called with the directory.

    Raises:
        DataError: there is none, or it cannot be imported.
    """
    if name in SOURCES:
        return SOURCES[name]
    try:
        found: Callable[..., Source] = imported(path_of(name, GROUP, SOURCES, "my_package.sources:mine"))
    except UnknownNameError as error:
        raise DataError(f"--source {name}: no such source; {error}") from error
    except ImportError as error:
        raise DataError(f"--source {name} cannot be imported: {error}") from error
    return found


def call_source(name: str, *arguments: Any, **options: Any) -> Source:
    """Call the function of a source.

    Args:
        name: see `find_source`.
        arguments: of the function; that of another package takes the directory and nothing else.
        options: of the function.

    Raises:
        DataError: there is no such source, it cannot be called so, or it gives no `Source`.
    """
    function = find_source(name)
    if name not in SOURCES and arguments[0] is None:
        raise DataError(f"--source {name} needs --directory, which its function is called with")
    try:
        signature(function).bind(*arguments, **options)
    except (TypeError, ValueError) as error:
        raise DataError(f"--source {name} must be a function of the directory alone: {error}") from error
    source = function(*arguments, **options)
    if not isinstance(source, Source):
        raise DataError(f"--source {name} gave a {type(source).__name__}; it must return a Source")
    return source
