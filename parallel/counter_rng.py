"""SplitMix64 for Python's integers, NumPy arrays and tensors: the same 64 bits from each, and no state.

SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16)
adds `GAMMA` to its state and mixes the sum. It is written out here because neither NumPy nor torch promises a
stable stream across versions, and a resumed run needs one. Products of unsigned and of signed 64-bit words
wrap to the same bits on every device. This module does not import torch.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # factors of the mix


def signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word; an int outside of 64 bits wraps."""
    return (word + 2**63) % 2**64 - 2**63


SIGNED_GAMMA, SIGNED_FIRST, SIGNED_SECOND = signed(GAMMA), signed(FIRST), signed(SECOND)


def splitmix64(state: int) -> int:
    """The output of SplitMix64 that follows `state`, an unsigned 64-bit word."""
    z = (state + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * FIRST) & MASK
    z = ((z ^ (z >> 27)) * SECOND) & MASK
    return z ^ (z >> 31)


def mix64_array(z: np.ndarray) -> np.ndarray:
    """The mix of SplitMix64, a bijection, of every element of a uint64 array of any shape."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


def mix64_tensor(z: "Tensor") -> "Tensor":
    """The mix of SplitMix64, a bijection, of every element of an int64 tensor of any shape and device."""
    z = (z ^ shift_right(z, 30)) * SIGNED_FIRST
    z = (z ^ shift_right(z, 27)) * SIGNED_SECOND
    return z ^ shift_right(z, 31)


def shift_right(z: "Tensor", bits: int) -> "Tensor":
    """Logical right shift of int64 or int32 words; `>>` of signed tensors is arithmetic."""
    return (z >> bits).bitwise_and_((1 << (8 * z.element_size() - bits)) - 1)


def splitmix64_tensor(state: "Tensor") -> "Tensor":
    """`splitmix64` of every element of an int64 tensor."""
    return mix64_tensor(state + SIGNED_GAMMA)
