"""RandAugment and color jitter: the operations that each sample of a batch draws, and their arguments.

RandAugment (Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
2020, section 3) in the form of Swin's recipe, timm's `rand-m9-mstd0.5-inc1`: 2 operations a sample out of 15,
with replacement, each applied with probability 0.5 at its own magnitude ~ Normal(9, 0.5) clipped to 0 ... 10;
"inc" are the operations whose strength grows with the magnitude. B = samples, N = operations a sample.
"""

from dataclasses import dataclass
from enum import IntEnum
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from data_shards.augment.options import MAX_LEVEL, RandAugmentOptions
from data_shards.format.rng import Purpose
from data_shards.format.rng_tensor import keys, normals, uniforms

APPLY_PROB = 0.5


class ImageOp(IntEnum):
    """The operations, in timm's order; NOTHING leaves the image as it is."""

    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    COLOR = 7
    CONTRAST = 8
    BRIGHTNESS = 9
    SHARPNESS = 10
    SHEAR_X = 11
    SHEAR_Y = 12
    TRANSLATE_X = 13
    TRANSLATE_Y = 14
    NOTHING = 15


class OpPlan(NamedTuple):
    """Column i has the i-th operation of every sample: ops (B, N) int64, arguments (B, N) float32."""

    ops: Tensor
    arguments: Tensor


@dataclass(frozen=True, kw_only=True)
class RandAugment(RandAugmentOptions):
    """Draws the operations of samples, by its options."""

    def draw(self, seed: int, positions: Tensor, sides: tuple[int, int]) -> OpPlan:
        """The plan of the samples at `positions` (B,) int64; `sides` of the images, (H, W) in pixels."""
        draws = uniforms(keys(Purpose.RANDAUGMENT, seed, positions), 4 * self.num_ops)
        which, chance, level, sign = draws.view(-1, self.num_ops, 4).unbind(-1)  # each (B, N)
        ops = (which * ImageOp.NOTHING).long()
        level = (self.magnitude + self.magnitude_std * normals(level)).clamp(0.0, MAX_LEVEL)
        arguments = op_arguments(level / MAX_LEVEL, torch.where(sign < 0.5, -1.0, 1.0), sides)
        arguments = arguments.gather(0, ops[None])[0]
        return OpPlan(torch.where(chance < APPLY_PROB, ops, ImageOp.NOTHING), arguments.float())


def op_arguments(level: Tensor, sign: Tensor, sides: tuple[int, int]) -> Tensor:
    """Each operation's argument at `level` in 0 ... 1, for a `sign` of -1 or 1: (B, N) -> (15, B, N) float64.

    Posterizing keeps at least one bit. timm asks for none at the highest level, which is a black image and
    an error in Pillow 13.
    """
    enhance = (1.0 + 0.9 * level * sign).clamp(min=0.1)
    shear, shift = 0.3 * level * sign, 0.45 * level * sign  # the shift as a fraction of the side
    arguments = {
        ImageOp.ROTATE: 30.0 * level * sign,  # degrees, counter-clockwise
        ImageOp.POSTERIZE: (4 - (level * 4).floor()).clamp(min=1.0),  # bits to keep
        ImageOp.SOLARIZE: 256 - (level * 256).floor(),  # the first value that is inverted
        ImageOp.SOLARIZE_ADD: (level * 110).floor(),  # added to the values below 128
        **dict.fromkeys((ImageOp.COLOR, ImageOp.CONTRAST, ImageOp.BRIGHTNESS, ImageOp.SHARPNESS), enhance),
        **dict.fromkeys((ImageOp.SHEAR_X, ImageOp.SHEAR_Y), shear),
        ImageOp.TRANSLATE_X: shift * sides[1],  # pixels
        ImageOp.TRANSLATE_Y: shift * sides[0],
    }
    none = torch.zeros_like(level)
    return torch.stack([arguments.get(op, none) for op in ImageOp if op != ImageOp.NOTHING])


JITTER_ORDERS = tuple(permutations((ImageOp.BRIGHTNESS, ImageOp.CONTRAST, ImageOp.COLOR)))


def draw_color_jitter(strength: float, seed: int, positions: Tensor) -> OpPlan:
    """Brightness, contrast and colour by factors of 1 - strength ... 1 + strength, in an order of its own.

    torchvision's ColorJitter without hue, as timm uses it. `positions` (B,) int64.
    """
    draws = uniforms(keys(Purpose.COLOR_JITTER, seed, positions), 4)  # (B, 4)
    ops = torch.tensor(JITTER_ORDERS)[(draws[:, 3] * len(JITTER_ORDERS)).long()]
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return OpPlan(ops, (low + draws[:, :3] * (high - low)).float())
