"""The draws of rng.py for many samples at once, bit for bit, on int64 tensors of any device.

B = samples, n = draws a sample.
"""

import torch
from torch import Tensor

from data_shards.format.rng import Purpose, fold
from parallel.counter_rng import SIGNED_GAMMA, shift_right, signed, splitmix64_tensor


def keys(purpose: Purpose, seed: int, positions: Tensor, view: int = 0) -> Tensor:
    """`DrawKey(seed, position, view).draws(purpose)` of every position: (B,) int64 -> (B,) int64."""
    first = splitmix64_tensor(positions ^ signed(fold(purpose, seed)))
    return splitmix64_tensor(first ^ view) if view else first


def bits(keys: Tensor, counters: Tensor) -> Tensor:
    """The 64-bit draw number `counters` of `keys`, two int64 tensors that broadcast."""
    return splitmix64_tensor(keys + counters * SIGNED_GAMMA)


def uniforms(keys: Tensor, n: int) -> Tensor:
    """`uniform(key, 0 ... n - 1)` of rng.py, in [0, 1) with 53 bits: (B,) int64 -> (B, n) float64."""
    counters = torch.arange(n, device=keys.device)
    return shift_right(bits(keys[:, None], counters), 11).double() * 2.0**-53


def normals(uniform: Tensor) -> Tensor:
    """Standard normal numbers by the inverse of their distribution: draws in [0, 1) of float64, any shape."""
    return torch.special.ndtri(uniform.clamp(min=2.0**-54))
