"""The load of every expert in one picture, a row a layer or a class, for TensorBoard."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CELL = 16  # pixels a side
# Five colours of viridis (matplotlib, CC0), evenly spaced: equal steps look equal
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])


def heat_map(tokens: Sequence[Sequence[int]], cell: int = CELL) -> NDArray[np.uint8]:
    """Draw one row of cells a layer, one cell an expert, by the expert's load over its layer's mean.

    A load x takes the place x / (1 + x) on the scale: none is its dark end, an even load the middle, twice
    the mean two thirds of it, and no load however large is cut off.

    Args:
        tokens: (layers, E).
        cell: pixels a side.

    Returns:
        (3, layers * cell, E * cell), RGB; black lines part cells of more than two pixels.
    """
    counts = np.array(tokens, dtype=np.float64)
    means = counts.mean(axis=1, keepdims=True)
    places = counts / np.maximum(counts + means, 1)  # x / (1 + x) for x = count / mean; 0 in an empty layer
    stops = np.linspace(0, 1, len(COLOURS))
    cells = np.stack([np.interp(places, stops, channel) for channel in COLOURS.T])
    picture = cells.round().astype(np.uint8).repeat(cell, axis=1).repeat(cell, axis=2)
    if cell > 2:
        picture[:, cell - 1 :: cell] = 0
        picture[:, :, cell - 1 :: cell] = 0
    return picture
