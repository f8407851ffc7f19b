"""Gaussian blur as PIL's ImageFilter.GaussianBlur computes it, bit for bit, each image by its own sigma.

A Gaussian is approximated by three box filters, of which the outermost taps have a weight of their own
(Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", SSVM 2011,
equations 7, 11 and 14). The image is filtered three times along its rows and three times along its columns,
and is rounded to 8 bits after each. The border's pixels are repeated.

Legend: B images of H x W pixels; a box has the radius r, and covers r + 1 taps on either side of its centre.
"""

import torch
from torch import Tensor

from parallel.ranks.host import send

PASSES = 3
BITS = 24  # of the fractions of a weight


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur images (B, 3, H, W) uint8 on any device by `sigmas` (B,) pixels, on the host: the same shape."""
    weights = send(box_weights(sigmas), images.device)
    for dim in (3, 2):
        for _ in range(PASSES):
            images = _filtered(images, weights, dim)
    return images


def box_weights(sigmas: Tensor) -> Tensor:
    """The weights of the taps -n ... n of each box, in 2^-24: (B,) float -> (B, 2 n + 1) int64.

    Computed in fp32, as PIL does. n is the same for all: that of the largest box.
    """
    variance = sigmas.float().square() / PASSES  # of one box
    radius = ((12 * variance.double() + 1).sqrt().float() - 1).div(2).floor()
    rest = (2 * radius + 1) * (radius * (radius + 1) - 3 * variance)
    rest = rest / (6 * (variance - (radius + 1).square()))
    inner = (2**BITS / ((radius + rest) * 2 + 1)).long()[:, None]
    radius = radius.long()[:, None]
    outer = (2**BITS - (2 * radius + 1) * inner) // 2
    reach = int(radius.max()) + 1
    taps = torch.arange(-reach, reach + 1).abs()
    return torch.where(taps <= radius, inner, torch.where(taps == radius + 1, outer, 0))


def _filtered(images: Tensor, weights: Tensor, dim: int) -> Tensor:
    """One pass along a dimension of images (B, 3, H, W) uint8, in integers, rounded half up."""
    side, reach = images.shape[dim], weights.shape[1] // 2
    at = torch.arange(side, device=images.device)
    total = torch.full(images.shape, 1 << BITS - 1, dtype=torch.int64, device=images.device)
    for tap, weight in enumerate(weights.unbind(1)):
        neighbours = images.index_select(dim, (at + tap - reach).clamp(0, side - 1))
        total.addcmul_(neighbours.long(), weight[:, None, None, None])
    return (total >> BITS).to(torch.uint8)
