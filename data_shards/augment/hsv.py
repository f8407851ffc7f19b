"""Colours of 8 bits as hue, saturation and value, in integers throughout: the same on every device.

The rule is that of OpenCV's 8-bit images, which the published segmentation models were trained with: hue in
0 ... 179 (2 degrees a step), saturation and value in 0 ... 255. `to_hsv` agrees with OpenCV 5.0 in all 2^24
colours. `to_rgb` rounds down, as OpenCV does, which computes in float32: there 0.7 % of the values, all of
them whole numbers, become one less.

Legend: B images of H x W pixels.
"""

import torch
from torch import Tensor

SHIFT = 12  # bits of the fractions that OpenCV multiplies by in place of a division
HALF = 1 << SHIFT - 1
STEPS = 30  # of hue in each sixth of the circle of colours
HUES = 6 * STEPS


def to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value of images (B, 3, H, W) uint8: (B, H, W) int32 each."""
    red, green, blue = images.int().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = (chroma * _fraction(255, value) + HALF) >> SHIFT
    position = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = (position * _fraction(STEPS, chroma) + HALF) >> SHIFT
    return torch.where(hue < 0, hue + HUES, hue), saturation, value


def _fraction(whole: int, divisor: Tensor) -> Tensor:
    """2^SHIFT `whole` / `divisor`, rounded; of a divisor of 0, which is multiplied by 0, any number."""
    divisor = divisor.clamp(min=1)
    return (2 * (whole << SHIFT) + divisor).div(2 * divisor, rounding_mode="floor")


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The images of hue, saturation and value, (B, H, W) int32 each: (B, 3, H, W) uint8.

    A channel is V (1 - S m), where m in 0 ... 1 is the distance of the hue from the third of the circle in
    which the channel is V itself.
    """
    whole = 255 * STEPS
    channels = []
    for offset in (5, 3, 1):  # of red, green and blue, in sixths of the circle
        place = (hue + offset * STEPS) % HUES
        distance = torch.minimum(place, 4 * STEPS - place).clamp(0, STEPS)
        channels.append((value * (whole - saturation * distance)).div(whole, rounding_mode="floor"))
    return torch.stack(channels, 1).to(torch.uint8)
