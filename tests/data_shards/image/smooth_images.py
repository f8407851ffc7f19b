"""Smooth images, and what counts as the same image after decoding."""

import numpy as np
import simplejpeg


def smooth_image(height: int, width: int, channels: int = 3) -> np.ndarray:
    """An image with structure at many scales: (H, W, C) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 60 * np.sin(x / (5 + c)) + 60 * np.cos(y / (9 - c)) for c in range(channels)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(pixels, quality=95)


def assert_same_image(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within two gray levels everywhere and 50 dB: rounding, not another image."""
    difference = ours.astype(int) - theirs.astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(difference).max() <= 2
    assert 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9)) > 50
