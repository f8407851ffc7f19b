"""Several training sets in numbers: weights, and samples of an epoch. No NumPy: configurations use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

from data_shards.errors import DataError

UNIT = 10**6  # of proportions: they count to six decimals
MOST_TIMES = 1000  # the largest proportion or repeat
MOST_WEIGHT = 2**31  # of all sets together: its square fits into 63 bits


@dataclass(frozen=True, kw_only=True)
class TrainSet:
    """One of several training sets."""

    path: str  # directory of shards with a manifest.json, or its URL
    # share of the samples, relative to the proportions of the other sets, to six decimals; all sets or none
    proportion: float | None = None
    repeat: float | None = None  # how often its samples are drawn in an epoch; without proportions, 1


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The sets of a training run in numbers.

    `weights` are whole numbers in the proportions of the sets, and `samples` those of an epoch.
    """

    weights: tuple[int, ...]
    samples: int

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the samples that each set has."""
        return tuple(weight / sum(self.weights) for weight in self.weights)


def mixture(sets: Mapping[str, TrainSet], samples: Sequence[int]) -> Mixture:
    """The weights of sets that have `samples` samples, as MosaicML's streaming defines them.

    With proportions, an epoch has as many samples as all sets together. Without them, it has `repeat` times
    the samples of each set.

    Raises:
        DataError: no sets, a proportion or repeat that is none, or proportions for some of them only.
    """
    if not sets:
        raise DataError("there are no training sets")
    for name, one in sets.items():
        for option, value in {"proportion": one.proportion, "repeat": one.repeat}.items():
            if value is not None and not 1 / UNIT <= value <= MOST_TIMES:
                raise DataError(f"{name}.{option} ({value}) must lie in [{1 / UNIT:.0e}, {MOST_TIMES}]")
    proportions = [one.proportion for one in sets.values()]
    if all(value is None for value in proportions):
        repeats = [1 if one.repeat is None else one.repeat for one in sets.values()]
        weights = [max(1, round(repeat * count)) for repeat, count in zip(repeats, samples, strict=True)]
        return Mixture(weights=whole_weights(weights), samples=sum(weights))
    for name, one in sets.items():
        if one.proportion is None or one.repeat is not None:
            with_one = next(other for other, its in sets.items() if its.proportion is not None)
            raise DataError(
                f"{name}.proportion ({one.proportion}) and {name}.repeat ({one.repeat}), while {with_one} "
                "has a proportion: give every set a proportion and none a repeat, or no set a proportion"
            )
    weights = [round(value * UNIT) for value in proportions if value is not None]
    return Mixture(weights=whole_weights(weights), samples=sum(samples))


def whole_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """Weights without a common factor.

    Raises:
        DataError: no weights, one below 1, or a sum that is too large.
    """
    if not weights or min(weights) < 1:
        raise DataError(f"weights ({list(weights)}) must be whole numbers from 1")
    common = gcd(*weights)
    reduced = tuple(weight // common for weight in weights)
    if (total := sum(reduced)) >= MOST_WEIGHT:
        raise DataError(f"weights ({list(weights)}) are {total} together; at most {MOST_WEIGHT - 1}")
    return reduced
