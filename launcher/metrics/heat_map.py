"""The load of every expert in one picture, a row a layer or a class, for TensorBoard."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 16  # pixels a side
LINE = 14  # pixels from one name to the next, so that none hides another
NAME = "expert"  # what the columns are
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


def labelled(picture: NDArray[np.uint8], rows: Sequence[str]) -> NDArray[np.uint8]:
    """A heat map with the names of its rows at the left and the numbers of the experts above.

    Where the cells are smaller than a line of text, every n-th row has a name.

    Args:
        picture: (3, height, width) of `heat_map`.
        rows: the names of the rows.

    Returns:
        (3, height + margin, width + margin), light text on black; the picture is its lower right corner.
    """
    _, height, width = picture.shape
    font, cell = ImageFont.load_default(), height // len(rows)
    every = -(-LINE // cell)
    shown = {i: name for i, name in enumerate(rows) if i % every == 0}
    left = max(int(font.getlength(name)) for name in [*shown.values(), NAME]) + 6
    canvas = Image.new("RGB", (left + width, LINE + height))
    canvas.paste(Image.fromarray(picture.transpose(1, 2, 0)), (left, LINE))
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 1), NAME, font=font, fill="white")
    for i, name in shown.items():
        draw.text((2, LINE + i * cell), name, font=font, fill="white")
    columns = width // cell
    between = -(-(int(font.getlength(str(columns))) + 4) // cell)
    for j in range(0, columns, between):
        draw.text((left + j * cell, 1), str(j), font=font, fill="white")
    return np.asarray(canvas).transpose(2, 0, 1)
