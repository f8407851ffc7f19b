"""Images through Pillow, as RGB of 8 bits: every format but the anymaps, and the JPEGs that are left to it.

Only the first frame or page is decoded. Transparency is dropped, CMYK converted and a palette applied, as by
Pillow's convert("RGB"); pixels of more bits are scaled. Every function may raise any
exception on a damaged file: see `formats.decoder`.
"""

import io
import operator
import re
import sys
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from data_shards.image import png
from data_shards.image.formats import MAX_PIXELS, check_size, to_eight_bits, unit_to_eight_bits

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
# Tags of the TIFF 6.0 specification, sections 3, 8, 15 and 19
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 258, 262, 284, 339
STRIPS, TILES = (273, 279), (324, 325)  # the tags with their offsets, and with their sizes in bytes
WHITE_IS_ZERO, SEPARATE_PLANES, SIGNED = 0, 2, 2


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
        _check_complete_gif(body)
    elif kind == "BMP":
        _check_complete_bmp(body)
    image = open_image(body, kind)
    if isinstance(image, TiffImageFile):
        _check_tiff_pixels(image)
        _check_complete_tiff(image, len(body))
    rawmode = _rawmode(image)
    if SIXTEEN_BITS.fullmatch(rawmode):
        return _from_two_bytes(image, open_image(body, kind), rawmode)
    if rawmode == "LA;16B":  # of PNG alone; read as RGBA it keeps both bytes of gray and of alpha
        pairs = _read_as(image, "RGBA").astype(np.uint16)
        return _from_gray(to_eight_bits(pairs[:, :, 0] << 8 | pairs[:, :, 1], 65535))
    return _scaled_gray(image, rawmode) if image.mode[0] in "IF" else image.convert("RGB")


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Pillow's name of the pixel layout in the file; not of every format."""
    args = image.tile[0][3] if image.tile else None
    return str(args[0] if isinstance(args, tuple) else args)


def _read_as(image: ImageFile.ImageFile, rawmode: str) -> np.ndarray:
    """The pixels of an opened image, read as if the file had the layout `rawmode`."""
    tiles = [
        (tile, (rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode) for tile in image.tile
    ]
    image.tile = [tile._replace(args=args) for tile, args in tiles]
    return np.asarray(image)


def _from_two_bytes(image: ImageFile.ImageFile, again: ImageFile.ImageFile, rawmode: str) -> Image.Image:
    """An image of 16 bits a channel: Pillow keeps the high byte, and of one opened `again` the low one.

    The low bytes are read by stating the other byte order.
    """
    high = _read_as(image, rawmode).astype(np.uint16)
    low = _read_as(again, rawmode[:-1] + OTHER_BYTE_ORDER[rawmode[-1]])
    return Image.fromarray(to_eight_bits(high << 8 | low, 65535), image.mode).convert("RGB")


def _scaled_gray(image: ImageFile.ImageFile, rawmode: str) -> Image.Image:
    """Gray of at most 16 bits (Pillow's modes I;16, I;16B) or of floating-point numbers (F)."""
    if image.mode == "I":
        raise ValueError("32-bit integer pixels, whose white is unknown; save it with 8 or 16 bits")
    maxval, inverted = _gray_range(image) if isinstance(image, TiffImageFile) else (65535, False)
    if image.mode == "F":
        native = image.tile[0][0] == "libtiff"  # whatever the file's byte order, which Pillow forgets
        gray = unit_to_eight_bits(_read_as(image, "F;32NF" if native else rawmode))
    else:
        gray = to_eight_bits(np.asarray(image), maxval)
    return _from_gray(255 - gray if inverted else gray)


def _from_gray(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray).convert("RGB")


def _check_complete_gif(body: bytes) -> None:
    """ValueError unless every block of a GIF is there, up to its trailer (GIF89a, section 27)."""
    try:
        at = 13 + _color_table_bytes(body[10])
        while (block := body[at]) != 0x3B:
            at += 1
            if block == 0x2C:  # an image: its descriptor, a colour table, the code size, then its data
                at = _after_sub_blocks(body, at + 9 + _color_table_bytes(body[at + 8]) + 1)
            elif block == 0x21:  # an extension: its label, then its data
                at = _after_sub_blocks(body, at + 1)
    except IndexError:
        raise ValueError("a GIF that is cut short") from None


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(body: bytes, at: int) -> int:
    while size := body[at]:
        at += size + 1
    return at + 1


def _check_complete_bmp(body: bytes) -> None:
    """ValueError when a BMP is shorter than its header says."""
    if len(body) < (size := int.from_bytes(body[2:6], "little")):
        raise ValueError(f"a BMP that is cut short: its header says {size} bytes")


def _check_tiff_pixels(image: TiffImageFile) -> None:
    """ValueError for pixels that Pillow takes for others: signed ones, and deep ones in separate planes."""
    if image.tag_v2.get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
        raise ValueError("signed integer pixels, whose black and white are unknown; save it unsigned")
    if _planes(image) > 1 and image.tag_v2[BITS_PER_SAMPLE][0] != 8:
        raise ValueError("a TIFF of other than 8 bits in separate planes; save it with interleaved channels")


def _check_complete_tiff(image: TiffImageFile, size: int) -> None:
    """ValueError unless a file of `size` bytes holds every strip of the image, and they cover all of it."""
    if image.tag_v2.next == image.tag_v2.offset:  # what Pillow leaves there when the file ends before it
        raise ValueError("a TIFF that is cut short: its directory has no end")
    if image.tile[0][0] == "libtiff":
        offsets, sizes = STRIPS if STRIPS[0] in image.tag_v2 else TILES
        ends = map(operator.add, image.tag_v2.get(offsets, ()), image.tag_v2.get(sizes, ()))
        if max(ends, default=0) > size:
            raise ValueError("a TIFF that is cut short: a strip ends beyond the end of the file")
        return
    boxes = [tile[1] or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered < _planes(image) * image.width * image.height:
        raise ValueError("a TIFF whose strips do not cover the image")


def _planes(image: TiffImageFile) -> int:
    separate = image.tag_v2.get(PLANAR_CONFIGURATION) == SEPARATE_PLANES
    return len(image.getbands()) if separate else 1


def _gray_range(image: TiffImageFile) -> tuple[int, bool]:
    """The largest value of a gray image, and whether 0 is white, which Pillow applies to 8 bits alone."""
    bits = image.tag_v2[BITS_PER_SAMPLE][0]
    return 2**bits - 1, image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
