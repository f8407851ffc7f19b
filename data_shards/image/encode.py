"""Pixels to JPEG, by libjpeg-turbo: the same pixels give the same bytes under the same version."""

import numpy as np
import simplejpeg


def encode_jpeg(pixels: np.ndarray, quality: int, subsampling: str) -> bytes:
    """A JPEG of (H, W), (H, W, 1) gray or (H, W, 3) RGB uint8; `subsampling` "444" or "420" of colour."""
    pixels = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])
    if pixels.shape[2] == 1:
        return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=subsampling)
