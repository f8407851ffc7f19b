"""Mixup and CutMix in pairs: the samples at positions 2k and 2k + 1 mix with each other, by draws keyed by k.

A pair is the smallest group that can mix, and its draws depend on the seed and its positions alone. So any
number of ranks, micro-batches and samples per batch gives the same images, as long as no pair is split.
Mixup: Zhang et al., ICLR 2018, section 2. CutMix: Yun et al., ICCV 2019, section 3.1. As in timm, a pair
takes one of the two; unlike timm's batch mode, each pair draws its own. B = samples, K = classes, H, W =
height and width in pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.augment.options import GROUP
from data_shards.errors import DataError
from data_shards.format.rng import Purpose
from data_shards.format.rng_tensor import keys, uniforms


class Targets(NamedTuple):
    """lam x labels + (1 - lam) x partner_labels: (B,) int64 twice, and lam (B,) float32."""

    labels: Tensor
    partner_labels: Tensor
    lam: Tensor

    def soft(self, num_classes: int) -> Tensor:
        """The targets as probabilities: (B, K) float32."""
        mine, other = (F.one_hot(labels, num_classes).float() for labels in self[:2])
        return torch.lerp(other, mine, self.lam[:, None])


class Mix(NamedTuple):
    """Each sample's weight in its mix: lam (B,) float64; box (B, 4) int64, where its partner replaces it.

    The box is top, bottom, left, right in pixels, empty for mixup; for CutMix lam is the area outside of it,
    and `cut` (B,) bool is True.
    """

    lam: Tensor
    box: Tensor
    cut: Tensor


def partners(positions: Tensor) -> Tensor:
    """The row of each sample's partner: positions (B,) int64 -> (B,) int64; DataError when one is missing."""
    order = positions.argsort()
    ordered = positions[order]
    if len(ordered) % GROUP or not (ordered[::2] % GROUP == 0).all() or not (ordered.diff()[::2] == 1).all():
        raise DataError(
            f"mixup and cutmix need the samples 2k and 2k + 1 in one micro-batch (got positions "
            f"{_shown(ordered)}); make micro_batch_size even, or mixup_alpha and cutmix_alpha 0"
        )
    rows = torch.empty_like(order)
    rows[order[::2]], rows[order[1::2]] = order[1::2], order[::2]
    return rows


def _shown(positions: Tensor) -> str:
    text = ", ".join(str(position) for position in positions[:4].tolist())
    return text + (f" ... {positions[-1]}" if len(positions) > 4 else "")


class Beta:
    """Draws from Beta(alpha, alpha) by the inverse of its distribution, from a table made once.

    With u = v^(1/alpha) the density of u turns into (1 - v^(1/alpha))^(alpha - 1), which is smooth up to
    u = 1/2; the other half is its mirror image.
    """

    def __init__(self, alpha: float, steps: int = 2**14) -> None:
        v = np.linspace(0.0, 0.5**alpha, steps + 1)
        self.u = v ** (1 / alpha)
        density = (1 - self.u) ** (alpha - 1)
        self.cdf = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        self.cdf *= 0.5 / self.cdf[-1]

    def __call__(self, uniform: Tensor) -> Tensor:
        """Uniform draws in [0, 1) to draws of the distribution: float64, any shape."""
        draws = uniform.numpy()
        lower = np.interp(np.minimum(draws, 1 - draws), self.cdf, self.u)
        return torch.from_numpy(np.where(draws < 0.5, lower, 1 - lower))


class Mixer:
    """Draws how pairs mix; an alpha of 0 turns that kind off, `switch_prob` is the probability of CutMix."""

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, prob: float, switch_prob: float) -> None:
        self.mixup = Beta(mixup_alpha) if mixup_alpha else None
        self.cutmix = Beta(cutmix_alpha) if cutmix_alpha else None
        self.prob = prob
        self.cut_prob = switch_prob if self.mixup and self.cutmix else float(self.cutmix is not None)

    def draw(self, seed: int, positions: Tensor, sides: tuple[int, int]) -> Mix:
        """How the samples at `positions` (B,) int64 mix; `sides` of the images, (H, W) in pixels."""
        chance, switch, uniform, y, x = uniforms(keys(Purpose.MIX, seed, positions // GROUP), 5).unbind(1)
        cut = (switch < self.cut_prob) & (chance < self.prob)
        lam = torch.ones_like(uniform)
        for chosen, beta in ((cut, self.cutmix), (~cut & (chance < self.prob), self.mixup)):
            lam = torch.where(chosen, beta(uniform), lam) if beta else lam
        box = _boxes(lam, (y, x), sides) * cut[:, None]
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        return Mix(torch.where(cut, 1 - area / (sides[0] * sides[1]), lam), box, cut)


def _boxes(lam: Tensor, at: tuple[Tensor, Tensor], sides: tuple[int, int]) -> Tensor:
    """CutMix's rectangles, equation 2, clipped: (B, 4).

    Each side is the image's times sqrt(1 - lam), about a centre `at` (y, x) in [0, 1) of the image. It is
    rounded down to an even number of pixels, as in the authors' code; later versions of timm keep odd ones.
    """
    edges = []
    for fraction, side in zip(at, sides, strict=True):
        half, centre = (side * torch.sqrt(1 - lam)).floor() // 2, (fraction * side).floor()
        edges += [(centre - half).clamp(0, side), (centre + half).clamp(0, side)]
    return torch.stack(edges, -1).long()


def weights(mix: Mix, sides: tuple[int, int]) -> Tensor:
    """Each pixel's weight in its mix: (B, 1, H, W) float32, on the device of `mix`."""
    y, x = (torch.arange(side, device=mix.lam.device) for side in sides)
    top, bottom, left, right = mix.box[:, :, None].unbind(1)  # each (B, 1)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    boxed = rows[:, None, :, None] & columns[:, None, None, :]
    outside = torch.where(mix.cut, 1.0, mix.lam).float()
    return torch.where(boxed, 0.0, outside[:, None, None, None])
