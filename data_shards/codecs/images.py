"""Images, and label images: an integer for every pixel. H, W = height and width in pixels."""

from typing import Any

import numpy as np

from data_shards.codecs.codec import Codec, reported
from data_shards.format.image_names import IMAGE_SUFFIXES
from data_shards.image.encode import encode_jpeg
from data_shards.image.label_image import decode_label_image, encode_label_image
from data_shards.image.pixels import decode_pixels


class ImageCodec(Codec):
    """An image of any format in `data_shards/image/formats.py`; what is encoded here is a JPEG."""

    extensions = IMAGE_SUFFIXES

    def __init__(self, quality: int = 95) -> None:
        self.quality = quality

    @reported("a value that is no image")
    def encode(self, value: Any) -> bytes:
        """A JPEG (4:4:4) of (H, W) gray or (H, W, 3) RGB uint8."""
        pixels = np.asarray(value)
        if pixels.dtype != np.uint8:
            raise ValueError(f"its type is {pixels.dtype}, not uint8")
        return encode_jpeg(pixels, self.quality, "444")

    def decode(self, body: bytes) -> np.ndarray:
        """The pixels: (H, W, 1) uint8 of a gray JPEG, otherwise (H, W, 3)."""
        return decode_pixels(body)


class LabelImageCodec(Codec):
    """A PNG whose pixels are class ids: 8 or 16 bits of gray, or the indices of a palette. Lossless."""

    extensions = ("png",)

    @reported("a value that is no label image")
    def encode(self, value: Any) -> bytes:
        """The PNG of (H, W) integers: 8 bits for uint8 and bool, 16 for uint16, otherwise what they need."""
        return encode_label_image(np.asarray(value))

    def decode(self, body: bytes) -> np.ndarray:
        """The class ids: (H, W) uint8 or uint16."""
        return decode_label_image(body)
