"""Differences between trials, and what may be said of them: a verdict needs at least two seeds.

Legend: n differences, each between two trials of one seed.
"""

from typing import NamedTuple

import pandas as pd

from launcher.study.report.data import QualityMetric, Spread

FEWEST_SEEDS = 2
CHANCE = "one seed, so this may be chance"
MOST_TIMES = 99  # beyond, the number of spreads is not written


class Change(NamedTuple):
    """A difference: mean, standard deviation, least and most of n values, of a number of seeds."""

    mean: float
    std: float
    least: float
    most: float
    n: int
    seeds: int

    @classmethod
    def of(cls, differences: pd.Series) -> "Change":
        """The differences (n,), whose index has a level `seed`."""
        spread = Spread.of(differences)
        seeds = differences.index.get_level_values("seed").nunique()
        return cls(spread.mean, spread.std, differences.min(), differences.max(), spread.n, seeds)

    def text(self, metric: QualityMetric) -> str:
        """`+2.25 ± 0.49 points`; of one seed without a spread, but with the least and the most."""
        mean = f"{self.mean:+.{metric.digits}f}"
        if self.seeds >= FEWEST_SEEDS:
            return f"{mean} ± {self.std:.{metric.digits}f} {metric.change}"
        if self.n == 1:
            return f"{mean} {metric.change}"
        ends = f"{self.least:+.{metric.digits}f} to {self.most:+.{metric.digits}f}"
        return f"{mean} {metric.change} on average ({ends})"

    def verdict(self, of: str) -> str:
        """How the mean compares to the spread of what is named."""
        if self.seeds < FEWEST_SEEDS:
            return CHANCE
        if abs(self.mean) <= self.std:
            return f"within the spread of the {of}"
        times = abs(self.mean) / self.std if self.std else MOST_TIMES
        text = f"{times:.1f} times it" if times < MOST_TIMES else f"more than {MOST_TIMES} times it"
        return f"beyond the spread of the {of} ({text}, n={self.n})"


def between(first: Spread, second: Spread, metric: QualityMetric) -> str:
    """How far the second mean is behind the first, of configurations that share no pairs."""
    gap, spread = abs(first.mean - second.mean), (first.std**2 + second.std**2) ** 0.5
    if min(first.n, second.n) < FEWEST_SEEDS:
        every = "each with " if first.n == second.n else "one of both with "
        return f"{gap:.{metric.digits}f} {metric.change} behind, {every}{CHANCE}"
    if gap <= spread:
        return "a difference within the spread of the seeds"
    return f"{gap / spread:.1f} spreads behind" if spread else "behind, and no seed differs"
