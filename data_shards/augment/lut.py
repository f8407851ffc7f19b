"""The operations that map each value to another: tables of 256 entries, bit for bit those of PIL.

Each function takes images (B, 3, H, W) uint8 and arguments (B,) float32, and returns one table per channel:
(B, 3, 256) uint8. The names are those of PIL's ImageOps and ImageEnhance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from data_shards.augment.randaugment import ImageOp


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Every value through its channel's table: (B, 3, H, W) and (B, 3, 256) uint8 -> (B, 3, H, W)."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def blend(degenerate: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    """PIL's Image.blend on uint8, tensors that broadcast: in float32, clipped, then truncated."""
    difference = values.float() - degenerate.float()
    return (degenerate.float() + factors * difference).clamp(0.0, 255.0).to(torch.uint8)


def luma(images: Tensor) -> Tensor:
    """PIL's convert("L"), ITU-R 601-2 in 16-bit fractions: (B, 3, H, W) -> (B, H, W) int32."""
    red, green, blue = images.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _ramp(like: Tensor) -> Tensor:
    return torch.arange(256, device=like.device)


def _all_channels(tables: Tensor) -> Tensor:
    """(B, 256) of any type, already in 0 ... 255 -> (B, 3, 256) uint8."""
    return tables.to(torch.uint8)[:, None].expand(-1, 3, -1)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel's range to 0 ... 255; in float64, as Python computes it."""
    values = images.flatten(2)
    low, high = values.amin(2, keepdim=True).double(), values.amax(2, keepdim=True).double()  # (B, 3, 1)
    scale = torch.full_like(low, 255.0) / (high - low)  # 255.0 / x would be 255.0 times a rounded 1 / x
    tables = (_ramp(images) * scale + -low * scale).clamp(0.0, 255.0)
    return torch.where(high > low, tables, _ramp(images).double()).to(torch.uint8)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Make each channel's histogram flat, by PIL's integer steps."""
    counts = _histograms(images)
    last = counts.gather(2, images.flatten(2).amax(2, keepdim=True).long())  # (B, 3, 1)
    step = (counts.sum(2, keepdim=True) - last) // 255
    below = counts.cumsum(2) - counts
    tables = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, tables, _ramp(images)).to(torch.uint8)


def _histograms(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, 256) int64; torch.bincount would wait for the device."""
    values = images.flatten(2).long()  # (B, 3, HW)
    return torch.zeros((*values.shape[:2], 256), dtype=torch.int64, device=values.device).scatter_add_(
        2, values, torch.ones_like(values)
    )


def invert(images: Tensor, _: Tensor) -> Tensor:
    """255 minus the value."""
    return _all_channels((255 - _ramp(images)).expand(len(images), 256))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` bits."""
    drop = (8 - bits).long()[:, None]
    return _all_channels(_ramp(images) >> drop << drop)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values of at least `threshold`."""
    ramp = _ramp(images)
    return _all_channels(torch.where(ramp < threshold[:, None], ramp, 255 - ramp))


def solarize_add(images: Tensor, add: Tensor) -> Tensor:
    """Add `add` to the values below 128."""
    ramp = _ramp(images)
    return _all_channels(torch.where(ramp < 128, (ramp + add[:, None]).clamp(max=255), ramp))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    ramp = _ramp(images)
    return _all_channels(blend(torch.zeros_like(ramp), ramp, factor[:, None]))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray, rounded half up."""
    gray = luma(images).flatten(1)
    pixels = gray.shape[1]
    mean = (2 * gray.sum(1, keepdim=True) + pixels) // (2 * pixels)  # (B, 1)
    return _all_channels(blend(mean, _ramp(images), factor[:, None]))


TABLES: dict[ImageOp, Callable[[Tensor, Tensor], Tensor]] = {
    ImageOp.AUTO_CONTRAST: auto_contrast,
    ImageOp.EQUALIZE: equalize,
    ImageOp.INVERT: invert,
    ImageOp.POSTERIZE: posterize,
    ImageOp.SOLARIZE: solarize,
    ImageOp.SOLARIZE_ADD: solarize_add,
    ImageOp.BRIGHTNESS: brightness,
    ImageOp.CONTRAST: contrast,
}
