"""From the body of a request to the images of a model, with limits; no image harms another one.

Legend: h, w height and width of the model's images.
"""

import base64
import binascii

import numpy as np

from data_shards.errors import DataError
from data_shards.image.pixels import image_size
from launcher.serve.options import Limits
from launcher.serve.protocol import Model


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


def to_pixels(number: int, body: bytes, model: Model, limits: Limits) -> np.ndarray:
    """What a model sees of an image: (3, h, w) uint8, as in an evaluation.

    Raises:
        BadImageError: it is no image, damaged, or too large.
    """
    try:
        height, width = image_size(body)
        if height * width > limits.pixels:
            raise BadImageError(
                number, f"{width} x {height} pixels; at most {limits.pixels} are taken", status=413
            )
        return model.pixels(body)
    except DataError as error:
        raise BadImageError(number, str(error)) from error
