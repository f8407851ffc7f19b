"""The crop of a JPEG alone, by region.c: an optional part, built by `pip install` where jpeglib.h is.

Called through ctypes, which lets go of the interpreter lock. Its pixels are those of a full decode, bit for
bit, so nothing but speed depends on whether it was built.
"""

import ctypes
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_shards.image.geometry import Crop

REMEDY = "`apt install libjpeg-dev`, then `pip install -e .` again"


def _bind() -> Callable[..., int] | None:
    """The C function; None where it was not built, or a library that it needs is gone."""
    library = Path(__file__).with_name(f"_region{sysconfig.get_config_var('EXT_SUFFIX')}")
    try:
        function = ctypes.CDLL(str(library)).decode_region  # binds every symbol now, so none is missing later
    except OSError:
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 5, ctypes.c_void_p]
    return function


decode_in_c = _bind()


def decode(body: bytes, crop: Crop, factor: int) -> np.ndarray | None:
    """The pixels of `crop` in the image at 1/factor of its size: (h, w, C) uint8, C = 1 of gray, or RGB.

    None where only a full decode will do: see region.c, or it was not built.
    """
    if decode_in_c is None:
        return None
    compressed = np.frombuffer(body, dtype=np.uint8)
    pixels = np.empty(3 * crop.height * crop.width, dtype=np.uint8)
    channels = decode_in_c(compressed.ctypes.data, len(compressed), factor, *crop, pixels.ctypes.data)
    if not channels:
        return None
    return pixels[: channels * crop.height * crop.width].reshape(crop.height, crop.width, channels)


def describe() -> str:
    """What decodes a crop here, in a line, and what would make it faster."""
    if decode_in_c is None:
        return f"whole JPEGs, since data_shards/image/region.c was not built: {REMEDY}"
    return "of baseline JPEGs the crop alone, by data_shards/image/region.c"
