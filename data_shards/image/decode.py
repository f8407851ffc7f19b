"""A compressed image to the uint8 picture that the model is fed; normalising is the accelerator's work.

The crop is decided from the header, before a pixel is decoded. Resizing is torch's antialiased bicubic on
uint8, 71 dB from PIL's. Copies are NumPy's: torch would start its OpenMP threads under each of ours. H, W =
the source image; h, w = the picture, `image_size`; all in pixels. Gray images come out with three equal
channels.
"""

import numpy as np
import torch
import torch.nn.functional as F

from data_shards.errors import DataError
from data_shards.image.formats import MAX_PIXELS
from data_shards.image.geometry import TrainTransform, dct_factor, draw_crop, draw_flip
from data_shards.image.pixels import decode_pixels, decode_region, image_size
from data_shards.image.sides import ImageSize, sides


def decode_train(body: bytes, key: tuple[int, int], transform: TrainTransform) -> np.ndarray:
    """Decode, crop, resize and flip one training image: (3, h, w) uint8, a pure function of its arguments.

    `key` = (seed, position). DataError when the image cannot be decoded.
    """
    pixels, mirrored = decode_crop(body, key, transform), draw_flip(key, transform)
    return resize(pixels, *transform.sides, mirrored=mirrored)


def decode_crop(body: bytes, key: tuple[int, int], transform: TrainTransform) -> np.ndarray:
    """The pixels of a training image's crop before they are resized: (crop's height, crop's width, C) uint8.

    Where the crop has pixels to spare, its JPEG is decoded to 1/2 or 1/4 of its size (`dct_factor`); see
    `decode_region` for what is decoded at all.
    """
    crop = draw_crop(*image_size(body), key, transform)
    factor = dct_factor(crop, transform.sides)
    return decode_region(body, crop.reduced(factor), factor)


def decode_eval(body: bytes, size: ImageSize, crop_ratio: float = 1.0) -> np.ndarray:
    """Decode one evaluation image to `size`, a side or (h, w): (3, h, w) uint8.

    `crop_ratio` 1 resizes the whole image, changing its aspect ratio. Below 1, 0.875 say, the image is scaled
    until it just covers h / crop_ratio x w / crop_ratio pixels, keeping its aspect ratio, and the centre is
    cut out, as in Swin's and timm's evaluation (of a square that makes the short side size / crop_ratio).
    Always decoded in full. DataError as `decode_train`.
    """
    pixels, picture = decode_pixels(body), sides(size)
    if crop_ratio == 1.0:
        return resize(pixels, *picture)
    if not 0 < crop_ratio < 1:
        raise DataError(f"crop_ratio ({crop_ratio}) must be above 0 and at most 1")
    height, width = covering((pixels.shape[0], pixels.shape[1]), picture, crop_ratio)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"image of {pixels.shape[0]} x {pixels.shape[1]} pixels: its centre crop needs a resize to "
            f"{height} x {width} pixels, of at most {MAX_PIXELS}; eval_crop=1.0 resizes without a crop"
        )
    (h, w), top, left = picture, (height - picture[0]) // 2, (width - picture[1]) // 2
    return resize(pixels, height, width)[:, top : top + h, left : left + w]


def covering(image: tuple[int, int], picture: tuple[int, int], crop_ratio: float) -> tuple[int, int]:
    """The size (H, W) to which an image (H, W) is scaled so that it covers picture (h, w) / crop_ratio."""
    tall, wide = (round(side / crop_ratio) for side in picture)
    is_tall = image[0] * wide >= image[1] * tall  # relative to what it must cover: then the width decides
    covered, side = (wide, image[1]) if is_tall else (tall, image[0])
    height, width = (round(length * covered / side) for length in image)
    return max(tall, height), max(wide, width)


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
