"""Random erasing: a rectangle of each chosen sample becomes noise, on images that are already normalized.

Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, algorithm 1, in timm's form with mode "pixel" and
count 1: a standard normal number for every pixel and channel. B = images of C channels, H, W = their height
and width in pixels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from data_shards.format.rng import Purpose
from data_shards.format.rng_tensor import bits, keys, normals, uniforms
from parallel.ranks.host import send

AREA = (0.02, 1 / 3)  # of the image's
RATIO = (0.3, 1 / 0.3)  # height over width, log-uniform
TRIES = 10


class Rectangles(NamedTuple):
    """Which images are erased and where, all (E,) int64; top, left, height and width in pixels."""

    rows: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def noise_table() -> Tensor:
    """The standard normal distribution's 65,536 equally likely numbers: float32, the same on every device."""
    return normals((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16).float()


def draw_rectangles(prob: float, seed: int, positions: Tensor, sides: tuple[int, int]) -> Rectangles:
    """The rectangles of the samples at `positions` (B,) int64 in images of `sides` (H, W).

    After ten tries a sample is left as it is.
    """
    tall, wide = sides
    draws = uniforms(keys(Purpose.ERASE, seed, positions), 1 + 4 * TRIES)
    area, ratio, top, left = draws[:, 1:].view(-1, TRIES, 4).unbind(-1)  # each (B, TRIES)
    area = tall * wide * (AREA[0] + area * (AREA[1] - AREA[0]))
    ratio = torch.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
    height, width = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (height < tall) & (width < wide)
    top, left = (top * (tall - height + 1)).floor(), (left * (wide - width + 1)).floor()
    rows = ((draws[:, 0] < prob) & fits.any(1)).nonzero()[:, 0]
    first = fits.int().argmax(1)[rows]  # the first try that fits
    return Rectangles(rows, *(value[rows, first].long() for value in (top, left, height, width)))


def erase(images: Tensor, rectangles: Rectangles, seed: int, positions: Tensor, noise: Tensor) -> None:
    """Fill, in place, the `rectangles` of images (B, C, H, W) float32 with `noise`, of `noise_table`.

    `positions` (B,) int64 are on the host; element e of a rectangle of C x height x width takes its sample's
    draw number e.
    """
    counts = images.shape[1] * rectangles.height * rectangles.width
    total, device = int(counts.sum()), images.device
    if not total:
        return
    key = keys(Purpose.ERASE_NOISE, seed, positions[rectangles.rows])
    columns = torch.stack([*rectangles, key, counts.cumsum(0) - counts])  # (7, E)
    which = torch.repeat_interleave(send(counts, device), output_size=total)
    rows, top, left, height, width, key, start = send(columns, device)[:, which]  # each (total,)
    element = torch.arange(total, device=device) - start
    channel, inside = element // (height * width), element % (height * width)
    y, x = top + inside // width, left + inside % width
    images[rows, channel, y, x] = noise[bits(key, element) >> 48 & 0xFFFF]
