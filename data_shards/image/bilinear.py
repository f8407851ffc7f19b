"""Bilinear resizing of a part of an image: the pixels that a resize of the complete image has there.

A pixel of the result depends on few pixels of the source. So only the part of a JPEG that a window needs is
decoded, at full scale, and the result is bit for bit that of decoding, resizing and cutting the whole.

By default a pixel is interpolated between its four neighbours, also where the image is shrunk (no
antialiasing). The released segmentation models were trained and tested on images of OpenCV's INTER_LINEAR,
which does the same, and other pixels cost them accuracy. `antialias` averages over the area that a pixel of
the result covers where the image is shrunk, which is better for models that are trained anew.

Legend: H, W height and width of the source image; h, w of the result; C channels, 1 or 3.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_shards.image.geometry import Crop, Geometry
from data_shards.image.pixels import decode_region


class Taps(NamedTuple):
    """For n pixels along a side: the two pixels of the source that each lies between, (n,) int64.

    `weight` (n,) float32 is that of the second.
    """

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def taps(side: int, resized: int, start: int, stop: int) -> Taps:
    """The taps of the pixels `start` ... `stop` - 1 of a side of `side` pixels that is resized to `resized`.

    Pixel i has its centre at (i + 1/2) side / resized - 1/2 in pixels of the source; beyond the border the
    outermost pixels are repeated.
    """
    doubled = (2 * np.arange(start, stop) + 1) * side - resized  # the centre, times 2 x resized
    whole = doubled // (2 * resized)
    weight = ((doubled - whole * (2 * resized)) / (2 * resized)).astype(np.float32)
    return Taps(whole.clip(0, side - 1), (whole + 1).clip(0, side - 1), weight)


def decode_window(body: bytes, geometry: Geometry, *, antialias: bool = False, fill: int = 0) -> np.ndarray:
    """`resize_window` of a compressed image, of which no more is decoded than the window needs.

    DataError when the image cannot be decoded.
    """
    return resize_window(partial(decode_region, body), geometry, antialias=antialias, fill=fill)


def resize_window(
    region: Callable[[Crop], np.ndarray], geometry: Geometry, *, antialias: bool = False, fill: int = 0
) -> np.ndarray:
    """Resize an image, cut and mirror the result: (3, h, w) uint8, channels last in memory.

    Args:
        region: gives the pixels of a rectangle of the image, (height, width, C) uint8.
        geometry: its crop is the complete image.
        antialias: where the image is shrunk, average over what a pixel covers.
        fill: the value where the window reaches beyond the resized image.
    """
    height, width = geometry.resized
    window = geometry.window or Crop(0, 0, height, width)
    top, left = max(0, window.top), max(0, window.left)
    bottom, right = min(height, window.top + window.height), min(width, window.left + window.width)
    inside = Crop(top, left, bottom - top, right - left)
    part = _resized_part(region, geometry, inside, antialias)
    if inside != window:
        canvas = np.full((window.height, window.width, part.shape[2]), fill, dtype=np.uint8)
        canvas[inside.slices_in(window)] = part
        part = canvas
    if geometry.mirrored:
        part = part[:, ::-1]
    return np.broadcast_to(part, (*part.shape[:2], 3)).transpose(2, 0, 1)


def _resized_part(
    region: Callable[[Crop], np.ndarray], geometry: Geometry, inside: Crop, antialias: bool
) -> np.ndarray:
    """The pixels `inside` of the resized image: (height, width, C) uint8."""
    source, resized = geometry.crop, geometry.resized
    needed = _needed(source, resized, inside, antialias)
    pixels = region(needed)
    if source[2:] == resized:
        return pixels
    if antialias and (source.height > resized[0] or source.width > resized[1]):
        return _averaged(pixels, needed, source, resized, inside)
    rows = taps(source.height, resized[0], inside.top, inside.top + inside.height)
    columns = taps(source.width, resized[1], inside.left, inside.left + inside.width)
    return interpolate(pixels, _from(rows, needed.top), _from(columns, needed.left))


def _from(taps: Taps, start: int) -> Taps:
    """The taps in a source of which only the pixels from `start` on are there."""
    return taps._replace(first=taps.first - start, second=taps.second - start)


def interpolate(pixels: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """The weighted means of the taps, rounded half up: (H, W, C) uint8 to (h, w, C) uint8."""
    above, below = pixels[rows.first].astype(np.float32), pixels[rows.second].astype(np.float32)
    values = _lerp(above, below, rows.weight[:, None, None])
    left, right = values.take(columns.first, 1), values.take(columns.second, 1)
    values = _lerp(left, right, columns.weight[:, None])
    values += 0.5
    return values.astype(np.uint8)


def _lerp(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """first + weight (second - first), into the memory of both."""
    second -= first
    second *= weight
    first += second
    return first


def _needed(source: Crop, resized: tuple[int, int], inside: Crop, antialias: bool) -> Crop:
    """The part of the source that decides the pixels `inside`."""
    rows = _reach(source.height, resized[0], inside.top, inside.height, antialias)
    columns = _reach(source.width, resized[1], inside.left, inside.width, antialias)
    return Crop(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])


def _reach(side: int, resized: int, start: int, count: int, antialias: bool) -> tuple[int, int]:
    """The first pixel of a side that `count` pixels from `start` on depend on, and the one after the last."""
    if side == resized:
        return start, start + count
    if antialias:  # a triangle of one pixel of the result, or of the source, to either side of a centre
        scale = side / resized
        support = max(1.0, scale)
        low, high = (start + 0.5) * scale - support, (start + count - 0.5) * scale + support
        return max(0, int(low) - 1), min(side, int(high) + 2)
    ends = taps(side, resized, start, start + count)
    return int(ends.first[0]), int(ends.second[-1]) + 1


def _averaged(
    pixels: np.ndarray, needed: Crop, source: Crop, resized: tuple[int, int], inside: Crop
) -> np.ndarray:
    """Pillow's bilinear resize of the pixels that are `needed`: (height, width, C) uint8."""
    down, across = source.height / resized[0], source.width / resized[1]
    box = (
        max(0.0, inside.left * across - needed.left),
        max(0.0, inside.top * down - needed.top),
        min(needed.width, (inside.left + inside.width) * across - needed.left),
        min(needed.height, (inside.top + inside.height) * down - needed.top),
    )
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    size = inside.width, inside.height
    result = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    return result.reshape(inside.height, inside.width, pixels.shape[2])
