"""Counter-based random numbers: every draw is a pure function of named integers, never of a generator's past.

SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16)
is written out here because NumPy promises no stable stream across its versions and a resumed run needs one.
"""

from enum import IntEnum

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


class Purpose(IntEnum):
    """What a draw is for; the first word of every key, so that no two purposes share their draws."""

    PACK = 1
    SHARDS = 2
    WINDOW = 3
    AUGMENT = 4
    SYNTHETIC = 5
    RANDAUGMENT = 6
    COLOR_JITTER = 7
    ERASE = 8
    ERASE_NOISE = 9
    MIX = 10
    EVALUATION = 11
    SHOTS = 12


def splitmix64(state: int) -> int:
    """The output of SplitMix64 that follows `state`, an unsigned 64-bit integer."""
    z = (state + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def fold(*words: int) -> int:
    """One 64-bit key out of several integers; their order matters."""
    key = 0
    for word in words:
        key = splitmix64(key ^ (word & MASK))
    return key


def uniform(key: int, counter: int) -> float:
    """The draw number `counter` of `key`, in [0, 1) with 53 bits."""
    return (splitmix64((key + counter * GAMMA) & MASK) >> 11) * 2.0**-53


def hashes(key: int, count: int) -> np.ndarray:
    """The first `count` 64-bit draws of `key`: (count,) uint64, as `splitmix64` gives one by one."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(count: int, *words: int) -> np.ndarray:
    """The permutation of range(count) that sorts the draws of `words`: (count,) int64."""
    return np.argsort(hashes(fold(*words), count), kind="stable")
