"""The geometry of an image applied to its annotations: points, boxes, polygons, label images.

Coordinates are continuous, x to the right and y down: pixel i covers [i, i + 1), as in `Geometry`. So a box
is half open, x1 y1 x2 y2 with areas (x2 - x1) (y2 - y1), and the complete image is 0 0 W H. The vertices of a
polygon are points. Frames and further images: `transform_frames` and `decode_frames` of decode.py.
Annotations come from outside: what does not fit its image is a DataError, which makes the sample a bad one.

Legend: H, W height and width of the source image; h, w of the result; N annotations.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from data_shards.errors import DataError
from data_shards.image.geometry import Geometry

VOID = 255  # the class id of pixels without a label, as in Pascal VOC, ADE20K and Cityscapes


def transform_points(points: ArrayLike, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 2) of x, y in the image: where they lie in the result, and whether it covers them.

    Returns (..., 2) float32 and (...) bool. A point beyond the result keeps its place outside of it.
    DataError for anything but finite numbers of this shape.
    """
    place = _transformed(_numbers(points, 2, "points"), geometry)
    height, width = geometry.sides
    inside = np.all((place >= 0) & (place < (width, height)), axis=-1)
    return place.astype(np.float32), inside


def transform_boxes(
    boxes: ArrayLike, geometry: Geometry, *, min_side: float = 0.0, min_visible: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) of x1, y1, x2, y2 in the image: clipped to the result, and which of them to keep.

    Returns (N, 4) float32 in pixels of the result and (N,) bool. A box is kept if it has an area, both its
    sides have at least `min_side` pixels of the result, and at least `min_visible` of its area lies within
    the result. DataError for anything but finite numbers of this shape.
    """
    corners = _transformed(_numbers(boxes, 4, "boxes").reshape(-1, 2, 2), geometry)
    corners.sort(axis=1)  # a mirrored box has its left side on the right
    height, width = geometry.sides
    clipped = corners.clip(0, (width, height))
    whole, visible = ((box[:, 1] - box[:, 0]).prod(1) for box in (corners, clipped))
    shortest = (clipped[:, 1] - clipped[:, 0]).min(1, initial=np.inf)
    keep = (visible > 0) & (shortest >= min_side) & (visible >= min_visible * whole)
    return clipped.reshape(-1, 4).astype(np.float32), keep


def transform_labels(labels: np.ndarray, geometry: Geometry, fill: float = VOID) -> np.ndarray:
    """Label images, masks or depth maps (..., H, W) of any type, without interpolation: (..., h, w).

    A pixel takes the value of the source pixel that covers its centre, as torch's "nearest-exact" does. It
    takes `fill` where the window reaches beyond the image: `VOID`, or 0 for a mask. DataError when they are
    smaller than the crop.
    """
    top, left, height, width = geometry.source
    if labels.shape[-2] < top + height or labels.shape[-1] < left + width:
        raise DataError(
            f"labels of {labels.shape[-2]} x {labels.shape[-1]} pixels for a crop that ends at "
            f"{top + height} x {left + width}; pack them of the size of their image"
        )
    window = geometry.window or (0, 0, *geometry.resized)
    rows, above = _nearest(top, height, geometry.resized[0], window[0], window[2])
    columns, beside = _nearest(left, width, geometry.resized[1], window[1], window[3])
    if geometry.mirrored:
        columns, beside = columns[::-1], beside[::-1]
    result = labels[..., rows[:, None], columns]
    result[..., above[:, None] | beside] = fill
    return result


def source_pixels(steps: Sequence[Geometry]) -> tuple[np.ndarray, np.ndarray]:
    """The rows (h,) and the columns (w,) of an image that the pixels of a result show, without interpolation.

    Each of the `steps` is of the result of the one before, whose windows lie within their images. It is what
    `transform_labels` takes, for masks that are no bitmaps.
    """
    rows, columns = np.arange(0), np.arange(0)
    for number, step in enumerate(steps):
        top, left, height, width = step.source
        window = step.window or (0, 0, *step.resized)
        down, _ = _nearest(top, height, step.resized[0], window[0], window[2])
        across, _ = _nearest(left, width, step.resized[1], window[1], window[3])
        across = across[::-1] if step.mirrored else across
        rows, columns = (rows[down], columns[across]) if number else (down, across)
    return rows, columns


def check_same_size(labels: np.ndarray, image: tuple[int, int]) -> None:
    """DataError unless a label image (..., H, W) has the size (H, W) of its image."""
    if labels.shape[-2:] != image:
        size, wanted = (f"{height} x {width}" for height, width in (labels.shape[-2:], image))
        raise DataError(f"a label image of {size} pixels for an image of {wanted}; pack them of one size")


def _numbers(values: ArrayLike, columns: int, what: str) -> np.ndarray:
    """Annotations as float64 (..., columns), none of any shape as (0, columns); DataError for any others."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} that are no array of numbers ({error})") from error
    if not array.size:
        return array.reshape(0, columns)
    if array.shape[-1:] != (columns,) or not np.isfinite(array).all():
        raise DataError(f"{what} of shape {array.shape}; they are (..., {columns}) finite numbers")
    return array


def _transformed(points: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Points (..., 2) float64 of x, y in the image -> in the result."""
    top, left, height, width = geometry.source
    scale = geometry.resized[1] / width, geometry.resized[0] / height
    shift = (geometry.window.left, geometry.window.top) if geometry.window else (0, 0)
    place = (points - (left, top)) * scale - shift
    if geometry.mirrored:
        place[..., 0] = geometry.sides[1] - place[..., 0]
    return place


def _nearest(start: int, side: int, resized: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` pixels along a side, from pixel `first` of the `resized` crop on: (count,) int64 and bool.

    The source pixel that covers the centre of each, and whether it lies beyond the crop, where the source
    pixel is the last one. The crop has `side` pixels of the image, from `start` on.
    """
    pixel = np.arange(first, first + count)
    index = (2 * pixel + 1) * side // (2 * resized)  # floor((pixel + 1/2) * side / resized), exactly
    return start + index.clip(0, side - 1), (pixel < 0) | (pixel >= resized)
