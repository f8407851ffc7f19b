"""Compressed bytes to pixels: libjpeg-turbo for JPEG, PIL for whatever else is called .jpg."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from data_shards.errors import DataError


def image_size(body: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the header alone; DataError when it is no image."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(body)
    except ValueError:
        width, height = _open(body).size
    return height, width


def decode_pixels(body: bytes) -> np.ndarray:
    """Decode an image: (H, W, 1) uint8 when it is a gray JPEG, otherwise RGB (H, W, 3); or DataError.

    JPEG strictly, so that damage shows; CMYK and every other format through PIL. EXIF orientation is not
    applied.
    """
    try:
        colorspace = simplejpeg.decode_jpeg_header(body)[2]
        if colorspace in ("Gray", "YCbCr", "RGB"):
            return simplejpeg.decode_jpeg(body, colorspace="GRAY" if colorspace == "Gray" else "RGB")
    except ValueError:
        pass
    image = _open(body)
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"undecodable image ({error})") from error


def _open(body: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(body))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"undecodable image of {len(body)} bytes, neither libjpeg-turbo nor PIL reads it"
        ) from error
