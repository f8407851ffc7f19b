"""`draws` for many samples at once: the same SplitMix64, bit for bit, on int64 tensors of any device.

int64 products wrap on every device alike, so nothing here depends on a generator, a batch or a machine.
B = samples, n = draws a sample.
"""

import torch
from torch import Tensor

from data_shards.format import rng as draws
from data_shards.format.rng import Purpose


def _signed(word: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit word."""
    return (word + 2**63) % 2**64 - 2**63


_GAMMA, _FIRST, _SECOND = (_signed(w) for w in (draws.GAMMA, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix64(state: Tensor) -> Tensor:
    """`draws.splitmix64` of every element of `state`, int64 of any shape."""
    z = state + _GAMMA
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's >> on signed integers is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def keys(purpose: Purpose, seed: int, positions: Tensor) -> Tensor:
    """`draws.fold(purpose, seed, position)` of every position: (B,) int64 -> (B,) int64."""
    return splitmix64(positions ^ _signed(draws.fold(purpose, seed)))


def bits(keys: Tensor, counters: Tensor) -> Tensor:
    """The 64-bit draw number `counters` of `keys`, two int64 tensors that broadcast."""
    return splitmix64(keys + counters * _GAMMA)


def uniforms(keys: Tensor, n: int) -> Tensor:
    """`draws.uniform(key, 0 ... n - 1)`, in [0, 1) with 53 bits: (B,) int64 -> (B, n) float64."""
    counters = torch.arange(n, device=keys.device)
    return _shift(bits(keys[:, None], counters), 11).double() * 2.0**-53


def normals(uniform: Tensor) -> Tensor:
    """Standard normal numbers by the inverse of their distribution: draws in [0, 1) of float64, any shape."""
    return torch.special.ndtri(uniform.clamp(min=2.0**-54))
