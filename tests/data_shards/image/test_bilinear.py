"""Bilinear windows: a slow implementation, torch and Pillow on the complete image, and what is decoded."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data_shards.format.rng import DrawKey
from data_shards.image.bilinear import decode_window, resize_window
from data_shards.image.encode import encode_jpeg
from data_shards.image.geometry import Crop, Geometry
from data_shards.image.pixels import decode_pixels
from data_shards.image.resize_crop import ResizeCropTransform
from tests.data_shards.image.smooth_images import smooth_image

KEYS = [DrawKey(5, position) for position in range(14)]
NOISE = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


def slowly(pixels: np.ndarray, resized: tuple[int, int]) -> np.ndarray:
    """The complete image (h, w, C) float64, pixel by pixel, by the textbook's formula."""
    height, width, _ = pixels.shape
    result = np.zeros((*resized, pixels.shape[2]))
    for i in range(resized[0]):
        y = min(max((i + 0.5) * height / resized[0] - 0.5, 0.0), height - 1.0)
        for j in range(resized[1]):
            x = min(max((j + 0.5) * width / resized[1] - 0.5, 0.0), width - 1.0)
            for row, v in ((int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)):
                for column, h in ((int(x), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)):
                    result[i, j] += v * h * pixels[row, column]
    return result


@pytest.mark.parametrize("resized", [(37, 50), (19, 26), (74, 101), (20, 90), (1, 1), (5, 3)])
def test_the_complete_image_is_that_of_a_slow_implementation_and_of_torch(resized: tuple[int, int]) -> None:
    geometry = Geometry(Crop(0, 0, 37, 50), resized)
    ours = resize_window(lambda crop: NOISE[crop.slices], geometry)
    assert ours.shape == (3, *resized)
    assert np.abs(ours - slowly(NOISE, resized).transpose(2, 0, 1)).max() <= 0.5 + 1e-4
    images = torch.from_numpy(NOISE).permute(2, 0, 1)[None].double()
    theirs = F.interpolate(images, resized, mode="bilinear", antialias=False)[0].numpy()
    assert np.abs(ours - theirs).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_window_of_a_jpeg_is_that_of_everything_decoded_resized_and_cut(
    antialias: bool, channels: int
) -> None:
    """Bit for bit; with antialiasing Pillow's box is in float32, which may turn a rounding."""
    body = encode_jpeg(smooth_image(151, 203, channels), 95, "444")
    whole = decode_pixels(body)
    transform = ResizeCropTransform(image_size=(80, 120), long_side=250, short_side=150)
    padded = 0
    for key in KEYS:
        geometry = transform.geometry(151, 203, key)
        window = geometry.window
        assert window is not None
        everything = resize_window(
            lambda crop: whole[crop.slices],
            geometry._replace(window=None, mirrored=False),
            antialias=antialias,
        )
        cut = np.zeros((3, 80, 120), dtype=np.uint8)
        part = everything[:, window.top : window.top + 80, max(0, window.left) : window.left + 120]
        start = max(0, -window.left)
        cut[:, : part.shape[1], start : start + part.shape[2]] = part
        cut = cut[:, :, ::-1] if geometry.mirrored else cut
        ours = decode_window(body, geometry, antialias=antialias)
        difference = np.abs(ours.astype(int) - cut)
        assert difference.max() <= int(antialias)
        assert (difference > 0).mean() < 0.01
        padded += part.shape[1:] != (80, 120)
    assert 0 < padded < 14


def test_padding_has_the_fill_value_and_is_mirrored_to_the_right() -> None:
    geometry = Geometry(Crop(0, 0, 37, 50), (10, 20), Crop(0, -12, 16, 32), mirrored=True)
    ours = resize_window(lambda crop: NOISE[crop.slices], geometry, fill=9)
    content = resize_window(lambda crop: NOISE[crop.slices], Geometry(Crop(0, 0, 37, 50), (10, 20)))
    assert np.array_equal(ours[:, :10, :20], content[:, :, ::-1])
    assert (ours[:, 10:] == 9).all()
    assert (ours[:, :, 20:] == 9).all()


def test_no_more_is_decoded_than_the_window_needs() -> None:
    """Each border row and column of what is decoded matters: it has a weight in some pixel of the window."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 2, (90, 120, 1), dtype=np.uint8) * 255
    for resized in ((45, 60), (180, 240), (90, 120), (33, 44)):
        geometry = Geometry(Crop(0, 0, 90, 120), resized, Crop(10, 15, 12, 20))
        asked: list[Crop] = []

        def region(crop: Crop, asked: list[Crop] = asked) -> np.ndarray:
            asked.append(crop)
            return pixels[crop.slices]

        resize_window(region, geometry)
        (crop,) = asked
        scale = 90 / resized[0]
        assert crop.height <= 12 * scale + 2
        assert crop.width <= 20 * scale + 2
        assert crop.top >= 10 * scale - 1
        assert crop.left >= 15 * scale - 1


def test_antialiasing_is_pillows_and_changes_nothing_that_is_enlarged() -> None:
    body = encode_jpeg(smooth_image(90, 130), 95, "444")
    whole = Image.open(io.BytesIO(body))
    for size in ((45, 65), (30, 40), (80, 160), (13, 9)):
        geometry = Geometry(Crop(0, 0, 90, 130), size)
        theirs = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        ours = decode_window(body, geometry, antialias=True)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    enlarged = Geometry(Crop(0, 0, 37, 50), (80, 101), Crop(3, 4, 30, 40))
    both = [resize_window(lambda crop: NOISE[crop.slices], enlarged, antialias=aa) for aa in (False, True)]
    assert np.array_equal(*both)
    shrunk = Geometry(Crop(0, 0, 37, 50), (12, 16))
    both = [resize_window(lambda crop: NOISE[crop.slices], shrunk, antialias=aa) for aa in (False, True)]
    assert both[0].std() > 1.5 * both[1].std()  # of noise, an average varies less
