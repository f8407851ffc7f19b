"""Pixels of other than 8 bits, scaled to 8 by the range of their type, or refused with the reason."""

import numpy as np


def to_eight_bits(values: np.ndarray, maxval: int) -> np.ndarray:
    """round(values / maxval x 255) as uint8, of the same shape; ValueError for integers beyond 0 ... maxval.

    With a maxval of 65535 this is a division by 257.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > maxval:
        raise ValueError(f"pixels in {low} ... {high}; their range is 0 ... {maxval}")
    if maxval == 255:
        return values.astype(np.uint8, copy=False)
    return np.rint(np.arange(maxval + 1) / maxval * 255).astype(np.uint8)[values]


def unit_to_eight_bits(values: np.ndarray) -> np.ndarray:
    """round(values x 255) as uint8, of the same shape; ValueError for floats that are not in 0 ... 1."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # so NaN is refused
        raise ValueError(
            f"floating-point pixels in {low:g} ... {high:g}; only 0 ... 1 can be scaled to 8 bits"
        )
    return np.rint(values * 255).astype(np.uint8)
