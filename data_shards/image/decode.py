"""From a compressed image to the uint8 image that a stream gives; normalization is done on the device.

The geometry is decided from the header, before a pixel is decoded. The resize is torch's antialiased bicubic
on uint8, 71 dB from PIL's. NumPy copies the pixels, since torch would start its OpenMP threads in each of our
threads. Gray images get three equal channels.

Legend: H, W height and width of the source image; h, w of the result; C channels, 1 or 3.
"""

import numpy as np
import torch
import torch.nn.functional as F

from data_shards.format.fields import Members
from data_shards.image.geometry import Geometry, Transform, dct_factor
from data_shards.image.pixels import decode_pixels, decode_region, image_size

Example = dict[str, np.ndarray | int]  # of one sample, decoded: what its row of a batch gets


def decode_example(members: Members, transform: Transform, key: tuple[int, int]) -> Example:
    """The image (3, h, w) uint8 and the label of a sample, as `decode_image` gives the image."""
    body, label = members["image"], members["label"]
    assert isinstance(body, bytes)
    assert isinstance(label, int)
    return {"image": decode_image(body, transform, key), "label": label}


def decode_image(body: bytes, transform: Transform, key: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Decode, crop, resize and mirror one image: (3, h, w) uint8, a pure function of the arguments.

    `key` = (seed, position) of the sample. DataError when the image cannot be decoded.
    """
    geometry = transform.geometry(*image_size(body), key)
    return resize(decode_crop(body, geometry), geometry)


def decode_crop(body: bytes, geometry: Geometry) -> np.ndarray:
    """The pixels of the geometry's crop before they are resized: (crop height, crop width, C) uint8.

    Where the crop has more pixels than the resize needs, its JPEG is decoded to 1/2 or 1/4 of its size.
    See `decode_region` for the part that is decoded.
    """
    if geometry.in_full:
        return decode_pixels(body)
    factor = dct_factor(geometry.crop, geometry.resized)
    return decode_region(body, geometry.crop.reduced(factor), factor)


def resize(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The rest of the geometry: (H, W, C) uint8 to (3, h, w) uint8, the same pixels where no size changes.

    Channels stay last in memory, where torch's kernel is faster by a third; it detects them by the strides,
    also those of the batch. Its flip is fast in that layout too; NumPy's copies byte by byte.
    """
    contiguous = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    image = contiguous[None].permute(0, 3, 1, 2)  # (1, C, H, W)
    if image.shape[-2:] != geometry.resized:
        image = F.interpolate(
            image, size=geometry.resized, mode="bicubic", antialias=True, align_corners=False
        )
    if geometry.window is not None:
        top, left, height, width = geometry.window
        image = image[..., top : top + height, left : left + width]
    if geometry.mirrored:
        image = image.flip(3)
    return np.broadcast_to(image[0].numpy(), (3, *image.shape[-2:]))
