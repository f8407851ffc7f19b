"""Images through Pillow, as RGB of 8 bits: every format but the anymaps, and the JPEGs that are left to it.

Only the first frame or page is decoded. Transparency is dropped, CMYK converted and a palette applied, as by
Pillow's convert("RGB"); pixels of more bits are scaled (depth.py). Every function may raise any
exception on a damaged file: see `formats.decoder`.
"""

import io
import re
import sys
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from data_shards.image import png, tiff
from data_shards.image.depth import to_eight_bits, unit_to_eight_bits
from data_shards.image.formats import MAX_PIXELS, check_size, check_whole_bmp, check_whole_gif

# The class that opens each format. Pillow's registry is not used: it has 40 more, some of which run programs.
PLUGINS = {
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
}
SIXTEEN_BITS = re.compile(r"(RGB|RGBA|RGBX|CMYK);16[BLN]")
OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def open_image(body: bytes, kind: str) -> ImageFile.ImageFile:
    """The image with its header read and no pixel decoded; `kind` is one of PLUGINS.

    Pillow's switches are globals, which any library may set, so they are set before every image.
    """
    module, name = PLUGINS[kind]
    plugin: Any = import_module(f"PIL.{module}")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses what has more than twice as many
    if kind == "AVIF":
        plugin.DEFAULT_MAX_THREADS = 1  # the threads are the loader's
    image: ImageFile.ImageFile = getattr(plugin, name)(io.BytesIO(body))
    check_size(image.height, image.width)
    return image


def decode_rgb(body: bytes, kind: str) -> Image.Image:
    """The image as RGB of 8 bits."""
    if kind == "PNG":
        body = png.verified(body)
    elif kind == "GIF":
        check_whole_gif(body)
    elif kind == "BMP":
        check_whole_bmp(body)
    image = open_image(body, kind)
    if isinstance(image, TiffImageFile):
        tiff.check_pixels(image)
        tiff.check_whole(image, len(body))
    rawmode = _rawmode(image)
    if SIXTEEN_BITS.fullmatch(rawmode):
        return _from_two_bytes(image, open_image(body, kind), rawmode)
    if rawmode == "LA;16B":  # of PNG alone; read as RGBA it keeps both bytes of gray and of alpha
        pairs = _read_as(image, "RGBA").astype(np.uint16)
        return _from_gray(to_eight_bits(pairs[:, :, 0] << 8 | pairs[:, :, 1], 65535))
    return _scaled_gray(image, rawmode) if image.mode[0] in "IF" else image.convert("RGB")


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for how the pixels lie in the file; not of every format."""
    args = image.tile[0][3] if image.tile else None
    return str(args[0] if isinstance(args, tuple) else args)


def _read_as(image: ImageFile.ImageFile, rawmode: str) -> np.ndarray:
    """The pixels of an opened image as if they lay in the file as `rawmode` says."""
    tiles = [
        (tile, (rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode) for tile in image.tile
    ]
    image.tile = [tile._replace(args=args) for tile, args in tiles]
    return np.asarray(image)


def _from_two_bytes(image: ImageFile.ImageFile, again: ImageFile.ImageFile, rawmode: str) -> Image.Image:
    """An image of 16 bits a channel: Pillow keeps the high byte, and of one opened `again` the low one.

    For the low bytes it is told that the file has the other byte order.
    """
    high = _read_as(image, rawmode).astype(np.uint16)
    low = _read_as(again, rawmode[:-1] + OTHER_BYTE_ORDER[rawmode[-1]])
    return Image.fromarray(to_eight_bits(high << 8 | low, 65535), image.mode).convert("RGB")


def _scaled_gray(image: ImageFile.ImageFile, rawmode: str) -> Image.Image:
    """Gray of at most 16 bits (Pillow's modes I;16, I;16B) or of floating-point numbers (F)."""
    if image.mode == "I":
        raise ValueError("32-bit integer pixels, whose white nobody can know; save it with 8 or 16 bits")
    maxval, inverted = tiff.gray_range(image) if isinstance(image, TiffImageFile) else (65535, False)
    if image.mode == "F":
        native = image.tile[0][0] == "libtiff"  # whatever the file's byte order, which Pillow forgets
        gray = unit_to_eight_bits(_read_as(image, "F;32NF" if native else rawmode))
    else:
        gray = to_eight_bits(np.asarray(image), maxval)
    return _from_gray(255 - gray if inverted else gray)


def _from_gray(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray).convert("RGB")
