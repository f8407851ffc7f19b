"""Random numbers that depend on (seed, sample, place in the model) alone: counter-based, without state.

Every draw of drop path, dropout and gate noise is a hash of the sample's key, the site (one number a module)
and the element. So a draw is the same on any rank, in any micro-batch, after any restart and when a block is
recomputed; and there is no generator state to save. The hashes are in hashing.py.

Legend: B samples, N rows (samples or tokens), n draws a row.
"""

import itertools
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parallel.counter_rng import GAMMA, SIGNED_GAMMA, shift_right, signed
from swin_moe import gpu
from swin_moe.random.hashing import mask_, mix, words


def sample_keys(seed: int, positions: Tensor) -> Tensor:
    """Keys of the samples at these positions of the data stream.

    Args:
        seed: of the run.
        positions: (B,) int64, unique over the whole run: position p is read once.

    Returns:
        (B,) int64.
    """
    return mix(mix(torch.full_like(positions, seed) + SIGNED_GAMMA) + positions * SIGNED_GAMMA)


def fold_in(keys: Tensor, number: int | Tensor) -> Tensor:
    """Keys of a sub-stream: of a site (an int) or of each token of a sample (a tensor that broadcasts)."""
    return mix(keys + (_offset(number) if isinstance(number, int) else (number + 1) * SIGNED_GAMMA))


def _offset(number: int) -> int:
    """What `fold_in` adds to the keys: Python's integers do not wrap by themselves."""
    return signed((number + 1) * GAMMA)


def split_keys(keys: Tensor, n: int) -> Tensor:
    """Keys of the sub-streams 0 .. n - 1 of each key: (N,) -> (N, n)."""
    return mix(keys[:, None] + torch.arange(1, n + 1, device=keys.device) * SIGNED_GAMMA)


def uniform(keys: Tensor, n: int) -> Tensor:
    """Uniform draws in (0, 1), both ends excluded: (N,) keys -> (N, n) float32 of 23 bits."""
    bits = shift_right(split_keys(keys, n), 41)
    return (bits.float() + 0.5) * 2.0**-23


def normal(keys: Tensor, n: int) -> Tensor:
    """Standard normal draws by Box and Muller, two of each pair of uniforms: (N,) keys -> (N, n) float32."""
    pairs = -(-n // 2)
    draws = ((words(keys, 2 * pairs, 0) >> 9).float() + (2.0**22 + 0.5)) * 2.0**-23  # in (0, 1), of 23 bits
    radius, angle = torch.sqrt(-2.0 * torch.log(draws[:, :pairs])), 2.0 * math.pi * draws[:, pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]


def keep_mask(keys: Tensor, n: int, rate: float, *, start: int = 0) -> Tensor:
    """Dropout masks: (N,) keys -> (N, n) bool, False with probability `rate`.

    Columns start .. start + n of a wider mask are the same elements.
    """
    return words(keys, n, start) >= drop_bound(rate)


def mask_preactivations_(x: Tensor, keys: Tensor, rate: float, *, start: int = 0) -> None:
    """Mask the pre-activations (N, n) that `keep_mask` would drop, in place.

    They become so low that value and derivative of GELU and SiLU are exactly zero, in every dtype.
    """
    mask_(x, keys, drop_bound(rate), start)


def drop_bound(rate: float) -> int:
    """Words below it, as signed numbers, are dropped."""
    return int(rate * 2**32) - 2**31


class SiteCounter:
    """Numbers the random places of a model in the order in which it is built."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def next(self) -> int:
        """The next free site."""
        return next(self._numbers)


class _KeyedDrop(nn.Module):
    """Something that drops at a rate, at a site."""

    constants: Tensor

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate, self.site = rate, site
        # Tensors: as numbers in the code they would give every module a compiled graph of its own.
        self.register_buffer("constants", torch.zeros(3, dtype=torch.int64), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute the constants again, after a construction on the meta device.

        They are what `fold_in` adds to a key, the lowest draw of 23 bits that is kept, and the bits of the
        fp64 number 1 - rate: no cast of the model rounds an int64.
        """
        rate = torch.tensor(self.rate, dtype=torch.float32, device="cpu").item()  # draws are fp32
        lowest = math.ceil(rate * 2**23 - 0.5)
        (kept,) = struct.unpack("<q", struct.pack("<d", 1.0 - self.rate))  # zero.Init rounds tensors of fp64
        values = [_offset(self.site), lowest, kept]
        self.constants.copy_(torch.tensor(values, dtype=torch.int64, device="cpu"))


class Dropout(_KeyedDrop):
    """Dropout whose mask is a function of the rows' keys (Srivastava et al. 2014)."""

    def keys(self, keys: Tensor) -> Tensor:
        """Keys of this site: (N,) -> (N,), those of `fold_in(keys, site)`."""
        return mix(keys + self.constants[0])

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Drop elements of x: (N, ...) with keys (N,) -> (N, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = keep_mask(self.keys(keys), x[0].numel(), self.rate) if len(x) else x.bool()
        return (x * (1.0 / (1.0 - self.rate))).masked_fill(~keep.view(x.shape), 0.0)


class DropPath(_KeyedDrop):
    """Stochastic depth: drops a sample's residual branch (Huang et al. 2016).

    The module holds rate and site; `branch_scales` draws for many of them at once.
    """


def branch_scales(drop_paths: Sequence[DropPath], keys: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What the residual branches of each sample are multiplied by: 0, or 1 / (1 - rate).

    A branch's draw is `uniform(fold_in(keys, site), 1)`, whatever it is drawn together with.

    Args:
        drop_paths: of D branches.
        keys: (B,) of the samples.
        dtype: of the scales.

    Returns:
        (D, B), or None where nothing is dropped.
    """
    if not any(drop_path.training and drop_path.rate > 0.0 for drop_path in drop_paths):
        return None
    offset, lowest, kept = torch.stack([x.constants for x in drop_paths]).t()[..., None].unbind(0)  # (D, 1)
    bits = shift_right(mix(mix(keys + offset) + SIGNED_GAMMA), 41)  # (D, B)
    wide = torch.promote_types(dtype, torch.float32)
    return ((bits >= lowest).to(wide) / kept.contiguous().view(torch.float64).to(wide)).to(dtype)


def add_branch(x: Tensor, y: Tensor, scale: Tensor | None) -> Tensor:
    """The residual sum x + scale * y: (B, ...) twice, and (B,) or None for 1.

    On a GPU it is one kernel, which rounds once; on a CPU two, as it always was.
    """
    if scale is None:
        return x + y
    scale = scale.to(y.dtype).view(-1, *[1] * (x.dim() - 1))
    return torch.addcmul(x, y, scale) if gpu.on_gpu(x) and x.dtype == y.dtype else x + y * scale
