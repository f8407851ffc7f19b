"""Small files in the format of Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def write_files(directory: Path, counts: dict[str, int]) -> dict[str, bytes]:
    """Four small files, the training ones gzipped: pixel = number of the image, label = number mod 10."""
    directory.mkdir(parents=True, exist_ok=True)
    bodies = {}
    for prefix, count in counts.items():
        images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
        bodies[f"{prefix}-images-idx3-ubyte"] = idx(images)
        bodies[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    for name, body in bodies.items():
        if name.startswith("train"):
            (directory / f"{name}.gz").write_bytes(gzip.compress(body))
        else:
            (directory / name).write_bytes(body)
    return bodies


def write_garments(directory: Path) -> None:
    """Files of 40 and 20 made-up garments: a block of its own size, with a hole, for each number."""
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        for number, image in enumerate(images):
            image[number % 7 : 28 - number % 5, 2 + number % 9 : 26 - number % 3] = 80 + 4 * number
            image[10:14, 12:16] = 255 - number
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(
            idx((np.arange(count) * 3 % 10).astype(np.uint8))
        )
