"""Power laws recovered from data that follow one, their intervals and warnings; the Pareto front."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from launcher.study.report.charts_pareto import front
from launcher.study.report.fit import LawFit, fit, offset_law, power_law, t_interval

X = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def seeds(b: float, noise: float, count: int, rng: np.random.Generator) -> dict[int, dict[float, float]]:
    """Losses 2 x^-b, each times 1 + noise."""
    return {
        seed: {float(x): float(2 * x**-b * (1 + noise * rng.standard_normal())) for x in X}
        for seed in range(count)
    }


def fitted(losses: Mapping[int, Mapping[float, float]]) -> LawFit:
    return fit(pd.DataFrame.from_dict(losses, orient="index"))


def test_exact_laws_come_back() -> None:
    law = power_law(X, 3 * X**-0.25)
    assert (law.a, law.b, law.c) == pytest.approx((3, 0.25, 0))
    law = offset_law(X, 0.5 + 2 * X**-0.4)
    assert (law.a, law.b, law.c) == pytest.approx((2, 0.4, 0.5), rel=1e-3)
    law = offset_law(X, 2 * X**-0.4)  # no constant: the grid begins at 0
    assert (law.b, law.c) == pytest.approx((0.4, 0.0), abs=1e-3)


def test_a_line_through_two_logarithms_by_hand() -> None:
    # log-log through (1, 8), (4, 4), (16, 2): halves for every factor of 4, so b = 1/2 and a = 8
    found = fitted({0: {1.0: 8.0, 4.0: 4.0, 16.0: 2.0}})
    assert found.law is not None
    assert (found.law.a, found.law.b, found.r2) == pytest.approx((8.0, 0.5, 1.0))


# the two-sided 95 % point of Student's t, from a printed table
@pytest.mark.parametrize(
    ("n", "t"), [(2, 12.706), (3, 4.303), (6, 2.571), (15, 2.145), (29, 2.048), (200, 1.972)]
)
def test_the_interval_is_that_of_students_t(n: int, t: float) -> None:
    values = [float(i % 2) for i in range(n)]
    low, high = t_interval(values) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(t * np.std(values, ddof=1) / n**0.5, rel=3e-4)
    assert (high + low) / 2 == pytest.approx(np.mean(values))


def test_interval_by_hand() -> None:
    # mean 2, standard deviation 1, t of 2 degrees 4.3027: 2 -+ 4.3027 / sqrt(3)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48416, 2 + 2.48416), abs=1e-4)
    assert t_interval([1.0]) is None


def test_intervals_cover_the_exponent_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        interval = fitted(seeds(0.2, 0.01, 4, rng)).interval
        assert interval is not None
        covered += interval[0] <= 0.2 <= interval[1]
    assert 0.91 <= covered / 300 <= 0.99


def test_good_data_have_no_warning() -> None:
    found = fitted(seeds(0.3, 0.01, 5, np.random.default_rng(1)))
    assert found.is_supported, found.warnings
    assert found.law is not None
    assert found.law.b == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({0: {1.0: 3.0, 8.0: 2.0}, 1: {1.0: 3.1, 8.0: 2.1}}, "too few sizes (2)"),
        ({0: {1.0: 3.0, 4.0: 2.0, 8.0: 1.5}, 1: {1.0: 3.1, 4.0: 2.1, 8.0: 1.4}}, "too few sizes (3)"),
        ({0: {x: x**-0.1 for x in (1.0, 2.0, 4.0, 8.0)}}, "there is no interval"),
        ({s: {x: (2 + s) * x**-0.1 for x in (1.0, 1.5, 2.0, 3.0)} for s in (0, 1)}, "a factor of 3.00"),
        ({s: {x: x ** (0.1 * (-1) ** s) for x in (1.0, 2.0, 4.0, 8.0)} for s in (0, 1)}, "holds 0"),
        ({s: {x: x ** (0.3 + 0.001 * s) for x in (1.0, 2.0, 4.0, 8.0)} for s in (0, 1)}, "below 0"),
        ({0: {1.0: 3.0, 2.0: 2.0, 4.0: 1.5, 8.0: 1.2}, 1: {1.0: 3.0}}, "1 of 2 seeds lack a size"),
        ({s: {1.0: 3.0 + s / 1e4, 2.0: 2.0, 4.0: 1.9, 8.0: 0.5} for s in (0, 1)}, "off the law"),
    ],
)
def test_doubts_are_said(losses: dict[int, dict[float, float]], said: str) -> None:
    found = fitted(losses)
    assert any(said in warning for warning in found.warnings), found.warnings
    assert not found.is_supported


def test_front_is_what_brute_force_finds() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        gain, cost = rng.integers(0, 6, (2, rng.integers(1, 12))).tolist()
        points = list(zip(gain, cost, strict=True))
        kept = [
            i
            for i, (g, c) in enumerate(points)
            if not any(h >= g and d <= c and (h, d) != (g, c) for h, d in points)
        ]
        assert sorted(front(gain, cost)) == kept
    assert front([3.0, 1.0, 2.0], [30.0, 10.0, 20.0]) == [1, 2, 0]  # cheapest first
