"""Power laws of the loss, loss = a x^-b or c + a x^-b, with what the seeds say about the exponent.

Form: Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5, for compute; Clark et al. 2022 (arXiv 2202.01169),
section 3, find it in the number of experts at a given size. Each seed is fitted alone, by least squares on
logarithms; the interval is Student's t over the seeds' exponents. Nothing is drawn at random.

Legend: s seeds, n distinct sizes x.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]
OFFSET_POINTS = 5  # distinct x from which a constant is fitted too: two more than the form has parameters
FEWEST_POINTS, FEWEST_SEEDS, LEAST_RANGE = 4, 2, 4.0
MOST_ERRORS = 3.0  # the means may miss a law by so many of their standard errors
CONFIDENCE = 0.95


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
class LawFit:
    """A law through the means over seeds, the interval of its exponent, and every reason for doubt."""

    law: Law | None  # None: too little data for any line
    interval: tuple[float, float] | None  # of b
    r2: float | None  # of the logarithms of the means
    x: tuple[float, ...]
    seeds: int
    warnings: tuple[str, ...]

    @property
    def is_supported(self) -> bool:
        """Whether the data support the law: there is no warning."""
        return not self.warnings


def power_law(x: Array, y: Array) -> Law:
    """The a and b of y = a x^-b by least squares on logarithms; (n,) each, all above 0."""
    line = stats.linregress(np.log(x), np.log(y))
    return Law(a=float(np.exp(line.intercept)), b=float(-line.slope))


def offset_law(x: Array, y: Array) -> Law:
    """The a, b and c of y = c + a x^-b: the c below all y with the least squared error of the logarithms."""

    def law(c: float) -> Law:
        inner = power_law(x, y - c)
        return Law(a=inner.a, b=inner.b, c=c)

    def error(c: float) -> float:
        return float(np.sum((np.log(y) - np.log(law(c).at(x))) ** 2))

    grid = np.linspace(0.0, float(y.min()) * (1 - 1e-6), 101)
    i = int(np.argmin([error(c) for c in grid]))
    bounds = grid[max(0, i - 1)], grid[min(100, i + 1)]
    best = optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return law(float(min(best.x, grid[i], key=error)))


def fit(losses: pd.DataFrame, *, offset: bool = False) -> LawFit:
    """Fit a law to losses by seed and size.

    Args:
        losses: (s, n), NaN where a seed lacks a size. Such seeds count in the means, not in the interval.
        offset: fit the constant c too.
    """
    losses = losses.sort_index(axis=1)
    sizes, complete = losses.columns.astype(float).tolist(), losses.dropna()
    is_positive = bool((losses.min(axis=None) > 0) and min(sizes, default=0.0) > 0)
    if not is_positive or len(sizes) < 3 or (offset and len(sizes) < OFFSET_POINTS):
        why = tuple(_few(sizes)) if is_positive or not sizes else ("a power law needs losses above 0",)
        return LawFit(law=None, interval=None, r2=None, x=tuple(sizes), seeds=len(losses), warnings=why)
    solve: Callable[[Array, Array], Law] = offset_law if offset else power_law
    x, means = np.array(sizes), losses.mean().to_numpy()
    law, interval = solve(x, means), t_interval([solve(x, y).b for y in complete.to_numpy()])
    logs = np.log(means)
    missed, total = np.sum((logs - np.log(law.at(x))) ** 2), np.sum((logs - logs.mean()) ** 2)
    return LawFit(
        law=law,
        interval=interval,
        r2=float(1 - missed / total) if total else 1.0,
        x=tuple(sizes),
        seeds=len(complete),
        warnings=(
            *_few(sizes),
            *_doubts(sizes, interval, len(losses), len(complete)),
            *_misfit(law, x, np.log(complete.to_numpy())),
        ),
    )


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The CONFIDENCE interval of the mean of values, by Student's t; None for fewer than two."""
    if len(values) < FEWEST_SEEDS:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _few(sizes: Sequence[float]) -> list[str]:
    if len(sizes) >= FEWEST_POINTS:
        return []
    return [f"too few sizes ({len(sizes)}) to see a law; at least {FEWEST_POINTS} are needed"]


def _doubts(
    sizes: Sequence[float], interval: tuple[float, float] | None, seeds: int, complete: int
) -> list[str]:
    warnings = []
    if sizes[-1] < LEAST_RANGE * sizes[0]:
        spanned = f"sizes span a factor of {sizes[-1] / sizes[0]:.2f}"
        warnings.append(f"{spanned}; at least {LEAST_RANGE:g} is needed")
    if complete < seeds:
        warnings.append(f"{seeds - complete} of {seeds} seeds lack a size and are left out of the interval")
    if interval is None:
        warnings.append(
            f"{complete} seed with every size: there is no interval; at least {FEWEST_SEEDS} are needed"
        )
    elif interval[0] <= 0 <= interval[1]:
        warnings.append(
            "the interval of b holds 0: the seeds do not show that the loss changes with the size"
        )
    elif interval[1] < 0:
        warnings.append("b is below 0: the loss rises with the size")
    return warnings


def _misfit(law: Law, x: Array, logs: Array) -> list[str]:
    """Whether the means miss the law by more than their own uncertainty explains.

    Args:
        law: through the means.
        x: (n,).
        logs: (s, n), the logarithms of the losses of the seeds that have every size.
    """
    if len(logs) < FEWEST_SEEDS:
        return []
    error = np.sqrt(np.mean(logs.var(axis=0, ddof=1)) / len(logs))
    miss = np.sqrt(np.mean((logs.mean(axis=0) - np.log(law.at(x))) ** 2))
    if miss <= MOST_ERRORS * error + 1e-6:
        return []
    times = f"{miss / error:.0f} times their standard error" if error > 1e-6 else "though the seeds agree"
    return [f"the points lie {miss:.1%} off the law, {times}: another form would fit better"]
