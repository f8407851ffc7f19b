"""The colour of each class in pictures, for every task and for the page of a server. No torch."""

import colorsys

HUES = 0.618034  # of the circle, from a class to the next: no two of few classes look alike


def class_colour(index: int) -> tuple[float, float, float]:
    """Red, green and blue of a class, in 0 to 1."""
    return colorsys.hsv_to_rgb(index * HUES % 1, 0.8 - index // 8 % 3 * 0.2, 1.0)


def web_colour(index: int) -> str:
    """The colour of a class as #rrggbb, as a picture of 8 bits has it."""
    return "#" + "".join(f"{round(part * 255):02x}" for part in class_colour(index))
