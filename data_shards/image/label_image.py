"""Label images: PNG files whose pixels are integers, such as class ids. H, W = height and width in pixels.

The integers are those of the file, never scaled: gray of 8 or 16 bits, or indices into a palette, whose
colours are ignored. Gray of fewer bits is refused, because programs differ in whether they scale it.
"""

import io

import numpy as np
from PIL import Image

from data_shards.image import pillow, png
from data_shards.image.formats import check_size, decoder, format_of

GRAY, PALETTE = 0, 3  # color types


@decoder
def decode_label_image(body: bytes) -> np.ndarray:
    """The integers of a PNG: (H, W) uint8 or uint16; DataError unless its checksums hold."""
    if (kind := format_of(body)) != "PNG":
        raise ValueError(f"it is a {kind}; a label image is a PNG, whose pixels are exact")
    header = png.read_header(body)
    if header.color not in (GRAY, PALETTE) or (header.color == GRAY and header.depth not in (8, 16)):
        text = f"color type {header.color} of {header.depth} bits"
        raise ValueError(f"a PNG of {text}; a label image is gray of 8 or 16 bits, or has a palette")
    image = pillow.open_image(png.verified(body), "PNG")
    return np.asarray(image, dtype=np.uint16 if header.depth == 16 else np.uint8)


def encode_label_image(ids: np.ndarray) -> bytes:
    """A gray PNG of (H, W) integers in 0 ... 65535; ValueError for any others."""
    if ids.ndim != 2 or ids.dtype.kind not in "biu":
        raise ValueError(f"shape {ids.shape} of {ids.dtype}; it must be (H, W) integers")
    check_size(*ids.shape)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > 65535:
        raise ValueError(f"ids in {low} ... {high}; 16 bits hold 0 ... 65535")
    wide = ids.dtype == np.uint16 or high > 255
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint16 if wide else np.uint8)).save(file, "PNG")
    return file.getvalue()
