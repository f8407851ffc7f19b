"""From the body of a request to what a model takes of an image, with limits; and images as PNG.

No image harms another one. Legend: h, w height and width of an image.
"""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL.Image

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.pixels import image_size
from launcher.serve.options import Limits

X = TypeVar("X")


class BadImageError(Exception):
    """An image that cannot be used.

    Args:
        number: of the image in its request, from 0.
        reason: why.
        status: of the answer.
    """

    def __init__(self, number: int, reason: str, status: int = 422) -> None:
        super().__init__(f"image {number}: {reason}")
        self.status = status


def from_base64(number: int, text: str) -> bytes:
    """The bytes of a base64 text, which may be a data URL.

    Raises:
        BadImageError: it is not base64.
    """
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImageError(number, f"is no base64: {error}") from error


def prepared(number: int, body: bytes, prepare: Callable[[bytes], X], limits: Limits) -> X:
    """What a model takes of the file of an image.

    Args:
        number: of the image in its request, from 0.
        body: the file.
        prepare: decodes it, or raises DataError.
        limits: of its pixels, which are counted from its header.

    Raises:
        BadImageError: it is no image, damaged, or too large.
    """
    try:
        height, width = image_size(body)
        if height * width > limits.pixels:
            raise BadImageError(
                number, f"{width} x {height} pixels; at most {limits.pixels} are taken", status=413
            )
        return prepare(body)
    except DataError as error:
        raise BadImageError(number, str(error)) from error


@dataclass(frozen=True)
class AtMost:
    """The complete image, made smaller until no side has more than `longest` pixels."""

    longest: int

    def geometry(self, height: int, width: int, key: DrawKey) -> Geometry:
        """Without a draw."""
        scale = min(1.0, self.longest / max(height, width))
        return Geometry(
            Crop(0, 0, height, width), (max(1, round(height * scale)), max(1, round(width * scale)))
        )


def as_png(pixels: np.ndarray) -> str:
    """An image (3, h, w) or (h, w), uint8, as a PNG in base64."""
    file = io.BytesIO()
    shown = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    PIL.Image.fromarray(np.ascontiguousarray(shown)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
