"""Random numbers that depend on (seed, sample, place in the model) alone: counter-based, no state.

Every draw of drop path, dropout and gate noise is a hash of the sample's key, the site (one number a module)
and the element. So a draw is the same on any rank, in any micro-batch, after any restart and when a block is
recomputed; and there is no generator state to save. int64 and int32 products wrap on every device alike.

Legend: B samples, N rows (samples or tokens), n draws a row.
"""

import itertools
import math

import torch
from torch import Tensor, nn

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the increment of splitmix64 (Steele et al. 2014)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's >> on signed integers is arithmetic."""
    width = 32 if z.dtype == torch.int32 else 64
    return (z >> bits).bitwise_and_((1 << (width - bits)) - 1)


def sample_keys(seed: int, positions: Tensor) -> Tensor:
    """Keys of the samples at these positions of the data stream.

    Args:
        seed: of the run.
        positions: (B,) int64, unique over the whole run: position p is read once.

    Returns:
        (B,) int64.
    """
    return _mix(_mix(torch.full_like(positions, seed) + _GOLDEN) + positions * _GOLDEN)


def fork(keys: Tensor, number: int | Tensor) -> Tensor:
    """Keys of a sub-stream: of a site (an int) or of each token of a sample (a tensor that broadcasts)."""
    if isinstance(number, int):  # Python's integers do not wrap
        return _mix(keys + (((number + 1) * _GOLDEN + 2**63) % 2**64 - 2**63))
    return _mix(keys + (number + 1) * _GOLDEN)


def uniform(keys: Tensor, n: int) -> Tensor:
    """Uniform draws in (0, 1), both ends excluded: (N,) keys -> (N, n) float32 of 23 bits."""
    counter = torch.arange(n, device=keys.device)
    bits = _shift(fork(keys[:, None], counter), 41)
    return (bits.float() + 0.5) * 2.0**-23


def normal(keys: Tensor, n: int) -> Tensor:
    """Standard normal draws by Box and Muller, two of each pair of uniforms: (N,) keys -> (N, n) float32."""
    pairs = -(-n // 2)
    draws = ((_words(keys, 2 * pairs, 0) >> 9).float() + (2.0**22 + 0.5)) * 2.0**-23  # in (0, 1), of 23 bits
    radius, angle = torch.sqrt(-2.0 * torch.log(draws[:, :pairs])), 2.0 * math.pi * draws[:, pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]


def keep_mask(keys: Tensor, n: int, rate: float, *, start: int = 0) -> Tensor:
    """Dropout masks: (N,) keys -> (N, n) bool, False with probability `rate`.

    Columns start .. start + n of a wider mask are the same elements.
    """
    return _words(keys, n, start) >= _bound(rate)


def sink_dropped(x: Tensor, keys: Tensor, rate: float, *, start: int = 0) -> None:
    """Sink what `keep_mask` would drop of pre-activations (N, n) to where GELU and SiLU end, in place.

    Value and derivative of either are exactly zero there, in every dtype. On a CPU rows are taken as many at
    a time as stay in its cache; no step is a comparison, which is not vectorised together with a choice.
    """
    bound, bottom = _bound(rate), torch.finfo(x.dtype).min / 2
    rows = max(1, 2**17 // max(1, x.shape[1])) if x.device.type == "cpu" else max(1, len(x))
    for piece, k in zip(x.split(rows), keys.split(rows), strict=True):
        dropped = (
            _words(k, x.shape[1], start).clamp_(max(bound - 1, -(2**31)), bound).sub_(bound)
        )  # -1, or 0 where kept
        piece.add_(dropped.to(x.dtype), alpha=-bottom)


def _words(keys: Tensor, n: int, start: int) -> Tensor:
    """One random word an element: (N,) keys -> (N, n) int32.

    The finaliser of murmur3 on 32 bits a element, with both halves of the key: six cheap passes, where
    splitmix64 would need 64-bit ones.
    """
    low, high = keys.to(torch.int32), _shift(keys, 32).to(torch.int32)  # .to keeps the low 32 bits
    column = torch.arange(start, start + n, device=keys.device, dtype=torch.int32)
    h = column * -1640531527 + low[:, None]  # (N, n)
    h ^= _shift(h, 16)
    h *= -2048144789
    h ^= high[:, None]
    h ^= _shift(h, 13)
    h *= -1028477387
    h ^= _shift(h, 16)
    return h


def _bound(rate: float) -> int:
    """Words below it, as signed numbers, are dropped."""
    return int(rate * 2**32) - 2**31


class SiteCounter:
    """Numbers the random places of one model in the order in which it is built."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def next(self) -> int:
        """The next free site."""
        return next(self._numbers)


class _KeyedDrop(nn.Module):
    """Something that drops at a rate, at a site."""

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate, self.site = rate, site


class Dropout(_KeyedDrop):
    """Dropout whose mask is a function of the rows' keys (Srivastava et al. 2014)."""

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Drop elements of x: (N, ...) with keys (N,) -> (N, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = keep_mask(fork(keys, self.site), x[0].numel(), self.rate) if len(x) else x.bool()
        return (x * (1.0 / (1.0 - self.rate))).masked_fill(~keep.view(x.shape), 0.0)


class DropPath(_KeyedDrop):
    """Stochastic depth: drops a sample's whole residual branch (Huang et al. 2016)."""

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Scale or zero each sample of x: (B, ...) with keys (B,) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = uniform(fork(keys, self.site), 1) >= self.rate  # (B, 1)
        scale = keep.to(x.dtype) / (1.0 - self.rate)
        return x * scale.view(-1, *[1] * (x.dim() - 1))
