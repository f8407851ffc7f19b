"""Compressed bytes to pixels: libjpeg-turbo for JPEG, Pillow for the other formats that are allowed.

Nothing about the bytes is trusted: their format is decided by content, their size is bounded before any
pixel is decoded, and whatever a decoder raises is a DataError (`data_shards.image.formats`).
"""

import numpy as np
import simplejpeg
from PIL import Image

from data_shards.image import pillow, png, pnm, region
from data_shards.image.formats import check_scans, check_size, decoder, format_of
from data_shards.image.geometry import Crop

ORIENTATION = 0x0112  # the tag of EXIF


@decoder
def image_size(body: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the header alone; DataError when it is no image that may be decoded."""
    kind = format_of(body)
    if kind == "PNG":
        return png.read_header(body).size
    if kind == "PNM":
        return pnm.read_header(body).size
    if kind == "JPEG" and (header := _jpeg_header(body)):
        return header[0], header[1]
    image = pillow.open_image(body, kind)
    return image.height, image.width


def exif_orientation(body: bytes) -> int:
    """The orientation that an image's EXIF states, 1 ... 8; 1, as it is stored, where it states none."""
    try:
        found = pillow.open_image(body, format_of(body)).getexif().get(ORIENTATION, 1)
    except Exception:  # as for decoders: damaged files raise anything
        return 1
    return found if found in range(1, 9) else 1


@decoder
def decode_pixels(body: bytes, factor: int = 1) -> np.ndarray:
    """Decode an image: (H, W, 1) uint8 when it is a gray JPEG, otherwise RGB (H, W, 3); or DataError.

    JPEG strictly, so that damage shows; CMYK and every other format through Pillow, its first frame alone.
    Transparency is dropped; 16-bit integers and floats of 0 ... 1 are scaled to 8 bits. EXIF orientation is
    applied to TIFF alone. With a `factor` of 2 or 4 the sides are 1/factor, rounded up, by libjpeg's scaled
    DCT where it is a JPEG.
    """
    kind = format_of(body)
    if kind == "JPEG" and (pixels := _decode_jpeg(body, factor)) is not None:
        return pixels
    if kind == "PNM":
        image = Image.fromarray(pnm.decode(body)).convert("RGB")
    else:
        image = pillow.decode_rgb(body, kind)
    return np.asarray(image.reduce(factor) if factor > 1 else image)


def decode_region(body: bytes, crop: Crop, factor: int = 1) -> np.ndarray:
    """The pixels of `crop` in what `decode_pixels` gives: (h, w, C) uint8, or DataError.

    A baseline JPEG is decoded no further than the crop's last row, so damage below it stays unseen. What
    warns above it, like everything else, is decoded in full.
    """
    if (pixels := region.decode(body, crop, factor)) is not None:
        return pixels
    return decode_pixels(body, factor)[crop.slices]


def _jpeg_header(body: bytes) -> tuple[int, int, str] | None:
    """(height, width, colorspace), or None where libjpeg-turbo reads none; ValueError beyond the limit."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(body)
    except ValueError:
        return None
    return *check_size(height, width), colorspace


def _decode_jpeg(body: bytes, factor: int) -> np.ndarray | None:
    """The pixels at 1/factor of the size, or None for a JPEG that is left to Pillow."""
    check_scans(body)
    header = _jpeg_header(body)
    if header is None or header[2] not in ("Gray", "YCbCr", "RGB"):
        return None
    height, width, colorspace = header
    smallest = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    try:
        return simplejpeg.decode_jpeg(body, "GRAY" if colorspace == "Gray" else "RGB", **smallest)
    except ValueError:
        return None
