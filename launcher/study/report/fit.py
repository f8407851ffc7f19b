"""Power laws of the loss, loss = a x^-b or c + a x^-b, with what the seeds say about the exponent.

Form: Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5, for compute; Clark et al. 2022 (arXiv 2202.01169),
section 3, find it in the number of experts at a given size. Each seed is fitted alone, by least squares on
logarithms; the interval is Student's t over the seeds' exponents. Nothing is drawn at random.

Legend: s seeds, n distinct sizes x.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
OFFSET_POINTS = 5  # distinct x from which a constant is fitted too: two more than the form has parameters
FEWEST_POINTS, FEWEST_SEEDS, LEAST_RANGE = 4, 2, 4.0
OFF_ERRORS = 3.0  # a law may miss the means by so many of their standard errors
# two-sided 95 % points of Student's t by degrees of freedom; beyond, the last, which is a little wide
# fmt: off
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Law:
    """loss = c + a x^-b."""

    a: float
    b: float
    c: float = 0.0

    def at(self, x: Array) -> Array:
        """The loss at sizes x, of their shape."""
        return np.asarray(self.c + self.a * x**-self.b)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law through the means over seeds, the interval of its exponent, and every reason for doubt."""

    law: Law | None  # None: too little data for any line
    interval: tuple[float, float] | None  # of b, 95 %
    r2: float | None  # of the logarithms of the means
    x: tuple[float, ...]
    seeds: int
    warnings: tuple[str, ...]

    @property
    def is_supported(self) -> bool:
        """Whether the data support the law: no warning stands."""
        return not self.warnings


def power_law(x: Array, y: Array) -> Law:
    """The a and b of y = a x^-b by least squares on logarithms; (n,) each, all above 0."""
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return Law(a=float(np.exp(intercept)), b=float(-slope))


def offset_law(x: Array, y: Array) -> Law:
    """The a, b and c of y = c + a x^-b: the best c of a grid that is made finer three times."""
    low, high = 0.0, float(y.min()) * (1 - 1e-6)
    for _ in range(4):
        grid = np.linspace(low, high, 101)
        errors = [_error(x, y, float(c)) for c in grid]
        best, width = float(grid[int(np.argmin(errors))]), (high - low) / 100
        low, high = max(0.0, best - width), min(float(y.min()) * (1 - 1e-6), best + width)
    law = power_law(x, y - best)
    return Law(a=law.a, b=law.b, c=best)


def _error(x: Array, y: Array, c: float) -> float:
    law = power_law(x, y - c)
    return float(np.sum((np.log(y) - np.log(c + law.at(x))) ** 2))


def fit(losses: Mapping[int, Mapping[float, float]], *, offset: bool = False) -> Fit:
    """Fit a law to losses by seed and size.

    Args:
        losses: seed -> {x: loss}. Seeds that lack a size are left out of the interval, not of the means.
        offset: fit the constant c too.
    """
    sizes = sorted({x for points in losses.values() for x in points})
    x = np.array(sizes)
    if len(sizes) < 3 or (offset and len(sizes) < OFFSET_POINTS):
        return Fit(law=None, interval=None, r2=None, x=tuple(sizes), seeds=len(losses), warnings=_few(sizes))
    solve = offset_law if offset else power_law
    means = np.array([np.mean([p[size] for p in losses.values() if size in p]) for size in sizes])
    whole = [
        np.array([points[size] for size in sizes]) for points in losses.values() if len(points) == len(x)
    ]
    law, exponents = solve(x, means), [solve(x, y).b for y in whole]
    interval = t_interval(exponents)
    warnings = [*_few(sizes), *_doubts(sizes, interval, len(losses), len(whole)), *_off(law, x, whole)]
    found = _r2(law, x, means)
    return Fit(
        law=law, interval=interval, r2=found, x=tuple(sizes), seeds=len(whole), warnings=tuple(warnings)
    )


def t_interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of values, by Student's t; None for fewer than two."""
    if len(values) < FEWEST_SEEDS:
        return None
    degrees = len(values) - 1
    t = STUDENT_T[min(degrees, len(STUDENT_T)) - 1]
    half = t * float(np.std(values, ddof=1)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return middle - half, middle + half


def _few(sizes: list[float]) -> tuple[str, ...]:
    if len(sizes) >= FEWEST_POINTS:
        return ()
    return (f"too few sizes ({len(sizes)}) to see a law; at least {FEWEST_POINTS} are needed",)


def _doubts(sizes: list[float], interval: tuple[float, float] | None, seeds: int, whole: int) -> list[str]:
    found = []
    if sizes[-1] < LEAST_RANGE * sizes[0]:
        found.append(f"sizes span a factor of {sizes[-1] / sizes[0]:.2f}; at least {LEAST_RANGE:g} is needed")
    if whole < seeds:
        found.append(f"{seeds - whole} of {seeds} seeds lack a size and are left out of the interval")
    if interval is None:
        found.append(
            f"{whole} seed with every size: there is no interval; at least {FEWEST_SEEDS} are needed"
        )
    elif interval[0] <= 0 <= interval[1]:
        found.append("the interval of b holds 0: the seeds do not show that the loss changes with the size")
    elif interval[1] < 0:
        found.append("b is below 0: the loss rises with the size")
    return found


def _off(law: Law, x: Array, whole: list[Array]) -> list[str]:
    """Whether the means miss the law by more than their own uncertainty explains."""
    if len(whole) < FEWEST_SEEDS:
        return []
    logs = np.log(np.stack(whole))  # (s, n)
    error = np.sqrt(np.mean(logs.var(axis=0, ddof=1)) / len(whole))
    miss = np.sqrt(np.mean((logs.mean(axis=0) - np.log(law.at(x))) ** 2))
    if miss <= OFF_ERRORS * error + 1e-6:
        return []
    times = f"{miss / error:.0f} times their standard error" if error > 1e-6 else "though the seeds agree"
    return [f"the points lie {miss:.1%} off the law, {times}: another form would fit better"]


def _r2(law: Law, x: Array, means: Array) -> float:
    residual = np.sum((np.log(means) - np.log(law.at(x))) ** 2)
    total = np.sum((np.log(means) - np.log(means).mean()) ** 2)
    return float(1 - residual / total) if total else 1.0
