"""From a compressed image to the uint8 image that a stream gives; normalization is done on the device.

The geometry is decided from the header, before a pixel is decoded. The resize is torch's antialiased bicubic
on uint8, 71 dB from PIL's. NumPy copies the pixels, since torch would start its OpenMP threads in each of our
threads. Gray images get three equal channels.

Legend: H, W height and width of the source image; h, w of the result; C channels, 1 or 3; T images of one
size.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.errors import DataError
from data_shards.format.rng import ANY_KEY, DrawKey
from data_shards.image.geometry import Crop, Geometry, GeometryChooser, enclosing
from data_shards.image.pixels import decode_pixels, decode_region, image_size

Colour = tuple[int, int, int]  # red, green and blue in 0 ... 255
BLACK: Colour = (0, 0, 0)


def decode_image(
    body: bytes, transform: GeometryChooser, key: DrawKey = ANY_KEY, fill: Colour = BLACK
) -> np.ndarray:
    """Decode, crop, resize and mirror one image: (3, h, w) uint8, a pure function of the arguments.

    `fill` is the colour of padding. DataError when the image cannot be decoded.
    """
    geometry = transform.geometry(*image_size(body), key)
    return resize(decode_crop(body, geometry), geometry, fill)


def decode_views(
    body: bytes, transforms: Sequence[GeometryChooser], keys: Sequence[DrawKey], fill: Colour = BLACK
) -> list[np.ndarray]:
    """Several views of one image, which is decoded once: (3, h, w) uint8 each, of its own h and w.

    Args:
        body: the image.
        transforms: of each view.
        keys: of each view; the views of a sample differ in `DrawKey.view`.
        fill: the colour of padding.

    Raises:
        DataError: the image cannot be decoded.
    """
    height, width = image_size(body)
    geometries = [
        transform.geometry(height, width, key) for transform, key in zip(transforms, keys, strict=True)
    ]
    return decode_geometries(body, geometries, fill)


def decode_geometries(body: bytes, geometries: Sequence[Geometry], fill: Colour = BLACK) -> list[np.ndarray]:
    """The results of several geometries of one image, which is decoded once: (3, h, w) uint8 each.

    Those whose `Geometry.factor` is the smallest of all have the pixels that each has alone, bit for bit.
    The others are resized from a decode at the larger scale, within 44 dB of that. DataError when the image
    cannot be decoded.
    """
    crops = decode_crops(body, geometries)
    return [resize(pixels, geometry, fill) for pixels, geometry in zip(crops, geometries, strict=True)]


def stack_views(views: Sequence[np.ndarray]) -> np.ndarray:
    """Views of one size as one array: V of (3, h, w) -> (V, 3, h, w), channels last in memory as each is."""
    return np.stack([view.transpose(1, 2, 0) for view in views]).transpose(0, 3, 1, 2)


def decode_crop(body: bytes, geometry: Geometry) -> np.ndarray:
    """The pixels of the geometry's source before they are resized: (height, width, C) uint8.

    Where it has more pixels than the resize needs, its JPEG is decoded to 1/2 or 1/4 of its size. See
    `decode_region` for the part that is decoded.
    """
    if geometry.in_full:
        return decode_pixels(body)[geometry.source.slices]
    return decode_region(body, geometry.source.reduced(geometry.factor), geometry.factor)


def decode_crops(body: bytes, geometries: Sequence[Geometry]) -> list[np.ndarray]:
    """`decode_crop` of several geometries: the image is decoded once, to the rectangle that contains all.

    It is decoded at a reduced size where that is enough for each of them.
    """
    factor = min(geometry.factor for geometry in geometries)
    crops = [geometry.source.reduced(factor) for geometry in geometries]
    if any(geometry.in_full for geometry in geometries):
        pixels = decode_pixels(body)
        decoded = Crop(0, 0, *pixels.shape[:2])
    else:
        decoded = enclosing(crops)
        pixels = decode_region(body, decoded, factor)
    return [pixels[crop.slices_in(decoded)] for crop in crops]


def resize(pixels: np.ndarray, geometry: Geometry, fill: Colour = BLACK) -> np.ndarray:
    """The rest of the geometry: (H, W, C) uint8 to (3, h, w) uint8, the same pixels where no size changes.

    `fill` is the colour where the window reaches beyond the resized crop.
    """
    return _resized(_tensor(pixels)[None], geometry, fill)[0]


def _tensor(pixels: np.ndarray) -> Tensor:
    """The same pixels for torch; copied where they are not contiguous."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _resized(frames: Tensor, geometry: Geometry, fill: Colour) -> np.ndarray:
    """`resize` of several crops of one size: (T, H, W, C) uint8 to (T, 3, h, w) uint8.

    Channels stay last in memory, where torch's kernel is faster by a third; it detects them by the strides,
    also those of the batch. Its flip is fast in that layout too; NumPy's copies byte by byte.
    """
    images = frames.permute(0, 3, 1, 2)  # (T, C, H, W)
    if images.shape[-2:] != geometry.resized:
        images = F.interpolate(
            images, size=geometry.resized, mode="bicubic", antialias=True, align_corners=False
        )
    if geometry.window is not None:
        images = _windowed(images, geometry.window, fill)
    if geometry.mirrored:
        images = images.flip(3)
    result: np.ndarray = images.expand(-1, 3, -1, -1).numpy()
    return result


def _windowed(images: Tensor, window: Crop, fill: Colour) -> Tensor:
    """The window of images (T, C, H, W) uint8, filled where it reaches beyond them: (T, C or 3, h, w)."""
    top, left = max(0, window.top), max(0, window.left)
    bottom, right = max(0, window.top + window.height), max(0, window.left + window.width)
    inside = images[..., top:bottom, left:right]
    if inside.shape[-2:] == window[2:]:
        return inside
    colour = torch.tensor(fill, dtype=torch.uint8)
    canvas = colour.repeat(len(images), window.height, window.width, 1).permute(0, 3, 1, 2)
    top, left = top - window.top, left - window.left
    canvas[..., top : top + inside.shape[-2], left : left + inside.shape[-1]] = inside
    return canvas


def transform_frames(frames: np.ndarray, geometry: Geometry, fill: Colour = BLACK) -> np.ndarray:
    """The geometry of decoded images of one size, such as a clip: (T, H, W, C) to (T, 3, h, w), both uint8.

    `decode_image` gives the same pixels unless it decodes at a reduced size.
    """
    rows, columns = geometry.source.slices
    cut = frames[:, rows, columns]
    flat = _tensor(cut).reshape(-1)  # the stride of an axis of one element, which NumPy leaves open
    return _resized(flat.view(cut.shape), geometry, fill)


def decode_frames(bodies: Sequence[bytes], geometry: Geometry, fill: Colour = BLACK) -> np.ndarray:
    """Several images of one size by the same geometry: (T, 3, h, w) uint8.

    DataError when one cannot be decoded, and when their sizes differ.
    """
    sizes = [image_size(body) for body in bodies]
    for frame, size in enumerate(sizes):
        if size != sizes[0]:
            found, first = (f"{height} x {width}" for height, width in (size, sizes[0]))
            raise DataError(f"frame {frame} has {found} pixels, the first {first}; pack frames of one size")
    return np.stack([resize(decode_crop(body, geometry), geometry, fill) for body in bodies])
