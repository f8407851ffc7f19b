"""Percentiles against values worked by hand, and against NumPy's."""

import numpy as np
import pytest

from launcher.bench.latency import Latency, percentile


def test_percentiles_by_hand() -> None:
    # of 0, 10, 20, 30, 40 the median is the third; 0.95 lies at place 3.8 and 0.99 at place 3.96
    latency = Latency.of([0.030, 0.0, 0.040, 0.010, 0.020])
    assert (latency.calls, latency.mean_ms, latency.p50_ms) == (5, pytest.approx(20), pytest.approx(20))
    assert latency.p95_ms == pytest.approx(38)
    assert latency.p99_ms == pytest.approx(39.6)


def test_one_time_is_every_percentile() -> None:
    latency = Latency.of([0.25])
    assert (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.mean_ms) == (250, 250, 250, 250)


@pytest.mark.parametrize("number", [2, 3, 100, 101])
def test_percentiles_are_those_of_numpy(number: int) -> None:
    values = sorted(np.random.default_rng(number).exponential(size=number).tolist())
    for share in (0, 0.01, 0.5, 0.95, 0.99, 1):
        assert percentile(values, share) == pytest.approx(np.quantile(values, share))
