"""From a sample of a source to the bytes that are packed: checked, resized, converted to baseline.

The same pixels give the same bytes on every machine: libjpeg-turbo's transforms and PIL's resize are integer
arithmetic. Another version of either library may differ, as may another jpegtran.
"""

import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.samples import BadSourceError
from data_shards.format.tar import MAX_BODY
from data_shards.image.encode import encode_jpeg
from data_shards.image.formats import is_progressive
from data_shards.image.pixels import decode_pixels, image_size

CHECKS = ("decode", "header", "none")
JPEGTRAN_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The processing of every sample; `short_side` in pixels, 0 keeps all sizes.

    `image_sizes` records height and width of the packed image.
    """

    quality: int = 95
    short_side: int = 0
    baseline: bool = False
    check: str = "decode"
    image_sizes: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise DataError(f"quality ({self.quality}) must be in 1 ... 100")
        if self.short_side < 0:
            raise DataError(
                f"short_side ({self.short_side}) must be at least 1 pixel, or 0 for no re-encoding"
            )
        if self.check not in CHECKS:
            raise DataError(f"check must be one of {', '.join(CHECKS)} (got {self.check!r})")
        if self.baseline and not shutil.which("jpegtran"):
            raise DataError(
                "--baseline needs the program jpegtran, which is not on PATH: "
                "apt-get install libjpeg-turbo-progs (conda: libjpeg-turbo), or leave --baseline out"
            )


def prepare(image: np.ndarray | bytes, recipe: Recipe) -> bytes:
    """The bytes to pack of (H, W) or (H, W, 3) uint8 pixels or of an image file.

    A file goes in as it is, unless its short side is longer than `short_side`, or it is progressive and
    `baseline` is set. BadSourceError when the check finds it damaged.
    """
    if isinstance(image, np.ndarray):
        return encode_jpeg(image, recipe.quality, "444")
    if len(image) > MAX_BODY:
        raise BadSourceError(f"{len(image)} bytes, more than 4 GB")
    pixels = _checked(image, "decode" if recipe.short_side else recipe.check)
    if pixels is not None and 0 < recipe.short_side < min(pixels.shape[:2]):
        return _encode_smaller(pixels, recipe)
    return to_baseline(image) if recipe.baseline and is_progressive(image) else image


def _checked(body: bytes, check: str) -> np.ndarray | None:
    """The pixels (H, W, 1 or 3) when the check decodes them."""
    try:
        if check == "decode":
            return decode_pixels(body)
        if check == "header":
            image_size(body)
    except DataError as error:
        raise BadSourceError(str(error)) from error
    return None


def _encode_smaller(pixels: np.ndarray, recipe: Recipe) -> bytes:
    try:
        return encode_jpeg(shrink(pixels, recipe.short_side), recipe.quality, "420")
    except (ValueError, MemoryError) as error:
        size = " x ".join(map(str, pixels.shape[:2]))
        raise BadSourceError(f"image of {size} pixels cannot be encoded as JPEG ({error})") from error


def shrink(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """(H, W, 1 or 3) uint8 so that the short side is `short_side`: antialiased bicubic, aspect kept."""
    height, width = _shrunk(pixels.shape[0], pixels.shape[1], short_side)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _shrunk(height: int, width: int, short_side: int) -> tuple[int, int]:
    sides = [max(1, round(side * short_side / min(height, width))) for side in (height, width)]
    return sides[0], sides[1]


def shrink_ids(ids: np.ndarray, short_side: int) -> np.ndarray:
    """(H, W) integers to the size that `shrink` gives an image of the same size, by the nearest pixel."""
    height, width = _shrunk(ids.shape[0], ids.shape[1], short_side)
    rows, columns = (
        ((2 * np.arange(new) + 1) * old) // (2 * new)
        for new, old in zip((height, width), ids.shape, strict=True)
    )
    return ids[rows[:, None], columns]


def to_baseline(body: bytes) -> bytes:
    """The same coefficients, and so the same pixels, as a baseline JPEG; `body` if jpegtran refuses it."""
    command = ["jpegtran", "-copy", "all", "-optimize"]
    try:
        done = subprocess.run(
            command, input=body, capture_output=True, timeout=JPEGTRAN_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(
            f"jpegtran failed ({error}); run the same command again, or leave --baseline out"
        ) from error
    return done.stdout if done.returncode == 0 and done.stdout else body
