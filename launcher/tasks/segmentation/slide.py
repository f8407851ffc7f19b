"""The windows that slide over an image. No torch."""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Rows and columns of an image."""

    rows: slice
    columns: slice


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows of `crop` pixels begin along a side, so that they cover it.

    They are `stride` pixels apart; the last one is moved inward to end at the border. A side of at most
    `crop` pixels has one window. This is the rule of mmsegmentation.
    """
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [min(i * stride, max(side - crop, 0)) for i in range(count)]


def windows_of(height: int, width: int, crop: tuple[int, int], stride: tuple[int, int]) -> Sequence[Window]:
    """The windows of an image, row by row: all of one size, that of the image where this is smaller."""
    tops, lefts = window_starts(height, crop[0], stride[0]), window_starts(width, crop[1], stride[1])
    tall, wide = min(height, crop[0]), min(width, crop[1])
    return [Window(slice(top, top + tall), slice(left, left + wide)) for top in tops for left in lefts]
