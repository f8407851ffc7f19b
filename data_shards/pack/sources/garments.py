"""A garment of Fashion-MNIST as an object on a canvas: enlarged, its silhouette, its soft rim.

Legend: S the side of the enlarged garment in pixels.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

SOLID = 16  # of 255: from this value on a pixel belongs to the garment; from 1 on to its rim


class Garment(NamedTuple):
    """An enlarged garment: its gray values (S, S) uint8, and which pixels are its silhouette and its rim."""

    gray: np.ndarray
    inside: np.ndarray
    rim: np.ndarray


def enlarge(image: np.ndarray, side: int) -> Garment:
    """The garment of an image (28, 28) uint8 at a size of `side` pixels.

    Its silhouette are the pixels of at least `SOLID`, and the holes that they enclose. Its rim are the other
    pixels above 0, where it is not clear what the pixel shows.
    """
    gray = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    inside = ~reached(gray < SOLID)
    return Garment(gray, inside, (gray > 0) & ~inside)


def reached(free: np.ndarray) -> np.ndarray:
    """Which pixels of `free` (H, W) bool can be reached from beyond the border, by steps to four sides."""
    free = np.pad(free, 1, constant_values=True)
    found = np.zeros_like(free)
    found[0] = True
    while True:
        grown = found.copy()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= free
        if np.array_equal(grown, found):
            return found[1:-1, 1:-1]
        found = grown
