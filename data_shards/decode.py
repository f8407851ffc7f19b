"""A compressed image to the uint8 picture that the model is fed; normalising is the accelerator's work.

The crop is decided from the header, before a pixel is decoded. Resizing is torch's antialiased bicubic on
uint8, 71 dB from PIL's. Copies are NumPy's: torch would start its OpenMP threads under each of ours. H, W =
the image; S = image_size; all in pixels. Gray images come out with three equal channels.
"""

import numpy as np
import torch
import torch.nn.functional as F

from data_shards.augment import TrainTransform, dct_factor, draw_crop, draw_flip
from data_shards.errors import DataError
from data_shards.formats import MAX_PIXELS
from data_shards.pixels import decode_pixels, decode_region, image_size


def decode_train(body: bytes, key: tuple[int, int], transform: TrainTransform) -> np.ndarray:
    """Decode, crop, resize and flip one training image: (3, S, S) uint8, a pure function of its arguments.

    `key` = (seed, position). DataError when the image cannot be decoded.
    """
    side, mirrored = transform.image_size, draw_flip(key, transform)
    return resize(decode_crop(body, key, transform), side, side, mirrored=mirrored)


def decode_crop(body: bytes, key: tuple[int, int], transform: TrainTransform) -> np.ndarray:
    """The pixels of a training image's crop before they are resized: (h, w, C) uint8.

    Where the crop has pixels to spare, its JPEG is decoded to 1/2 or 1/4 of its size (`dct_factor`); see
    `decode_region` for what is decoded at all.
    """
    crop = draw_crop(*image_size(body), key, transform)
    factor = dct_factor(crop, transform.image_size)
    return decode_region(body, crop.reduced(factor), factor)


def decode_eval(body: bytes, size: int, crop_ratio: float = 1.0) -> np.ndarray:
    """Decode one evaluation image: (3, size, size) uint8.

    `crop_ratio` 1 resizes the whole image, changing its aspect ratio; below 1, 0.875 say, the short side is
    resized to size / crop_ratio and the centre is cut out, as in Swin's and timm's evaluation. Always decoded
    in full. DataError as `decode_train`.
    """
    pixels = decode_pixels(body)
    if crop_ratio == 1.0:
        return resize(pixels, size, size)
    if not 0 < crop_ratio < 1:
        raise DataError(f"crop_ratio ({crop_ratio}) must be above 0 and at most 1")
    height, width = pixels.shape[:2]
    short = round(size / crop_ratio)
    h, w = (max(short, round(side * short / min(height, width))) for side in (height, width))
    if h * w > MAX_PIXELS:
        reason = f"its centre crop needs a resize to {h} x {w} pixels, of at most {MAX_PIXELS}"
        raise DataError(f"image of {height} x {width} pixels: {reason}; eval_crop=1.0 resizes without a crop")
    top, left = (h - size) // 2, (w - size) // 2
    return resize(pixels, h, w)[:, top : top + size, left : left + size]


def resize(pixels: np.ndarray, height: int, width: int, *, mirrored: bool = False) -> np.ndarray:
    """Antialiased bicubic: (H, W, C) uint8 to (3, height, width) uint8, the very pixels at that size.

    Channels stay last in memory, where torch's kernel is faster by a third; it looks for them in the strides,
    of the batch too. Its flip knows that layout as well, NumPy's copies one byte after the other.
    """
    whole = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    image = whole[None].permute(0, 3, 1, 2)  # (1, C, H, W)
    if image.shape[-2:] != (height, width):
        image = F.interpolate(
            image, size=(height, width), mode="bicubic", antialias=True, align_corners=False
        )
    if mirrored:
        image = image.flip(3)
    return np.broadcast_to(image[0].numpy(), (3, height, width))
