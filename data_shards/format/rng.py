"""Counter-based random numbers: every draw is a pure function of named integers and has no state."""

from enum import IntEnum, unique
from typing import NamedTuple

import numpy as np

from parallel.counter_rng import GAMMA, MASK, mix64_array, splitmix64


@unique
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
    SCALE_CROP = 13
    PART = 15
    PHOTOMETRIC = 16
    CANVAS = 17
    SCENE = 18
    DETECTION = 19
    VIEW = 23
    CLIP = 30
    MOTION = 31


def fold(*words: int) -> int:
    """One 64-bit key out of several integers; their order matters."""
    key = 0
    for word in words:
        key = splitmix64(key ^ (word & MASK))
    return key


class DrawKey(NamedTuple):
    """The key of the draws for one view of a sample: view 0 draws what a sample with one view does."""

    seed: int
    position: int  # of the sample in its stream
    view: int = 0

    def draws(self, purpose: Purpose) -> int:
        """The key of the draws for one purpose."""
        return fold(purpose, *(self if self.view else self[:2]))


ANY_KEY = DrawKey(seed=0, position=0)  # of what draws nothing


def uniform(key: int, counter: int) -> float:
    """The draw number `counter` of `key`, in [0, 1) with 53 bits."""
    return (splitmix64((key + counter * GAMMA) & MASK) >> 11) * 2.0**-53


def hashes(key: int, count: int) -> np.ndarray:
    """The first `count` 64-bit draws of `key`: (count,) uint64, as `splitmix64` gives one by one."""
    return mix64_array(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA) + np.uint64(key))


def permutation(count: int, *words: int) -> np.ndarray:
    """The permutation of range(count) that sorts the draws of `words`: (count,) int64."""
    return np.argsort(hashes(fold(*words), count), kind="stable")
