"""Compressed bytes to pixels: libjpeg-turbo for JPEG, PIL for whatever else is called .jpg."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from data_shards import region
from data_shards.augment import Crop
from data_shards.errors import DataError


def image_size(body: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the header alone; DataError when it is no image."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(body)
    except ValueError:
        width, height = _open(body).size
    return height, width


def decode_pixels(body: bytes, factor: int = 1) -> np.ndarray:
    """Decode an image: (H, W, 1) uint8 when it is a gray JPEG, otherwise RGB (H, W, 3); or DataError.

    JPEG strictly, so that damage shows; CMYK and every other format through PIL. EXIF orientation is not
    applied. With a `factor` of 2 or 4 the sides are 1/factor, rounded up, by libjpeg's scaled DCT.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(body)
        if colorspace in ("Gray", "YCbCr", "RGB"):
            smallest = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
            return simplejpeg.decode_jpeg(body, "GRAY" if colorspace == "Gray" else "RGB", **smallest)
    except ValueError:
        pass
    image = _open(body)
    try:
        image = image.convert("RGB")
        return np.asarray(image.reduce(factor) if factor > 1 else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"undecodable image ({error})") from error


def decode_region(body: bytes, crop: Crop, factor: int = 1) -> np.ndarray:
    """The pixels of `crop` in what `decode_pixels` gives: (h, w, C) uint8, or DataError.

    A baseline JPEG is decoded no further than the crop's last row, so damage below it stays unseen. What
    warns above it, like everything else, is decoded in full.
    """
    if (pixels := region.decode(body, crop, factor)) is not None:
        return pixels
    top, left, height, width = crop
    return decode_pixels(body, factor)[top : top + height, left : left + width]


def _open(body: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(body))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"undecodable image of {len(body)} bytes, neither libjpeg-turbo nor PIL reads it"
        ) from error
