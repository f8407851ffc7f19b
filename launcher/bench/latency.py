"""Percentiles of times. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

FEW = 100  # calls, below which the 99th percentile is close to the largest time


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long calls took."""

    calls: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> "Latency":
        """The percentiles of at least one time in seconds."""
        ordered = sorted(times_s)
        p50_s, p95_s, p99_s = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
        return cls(
            calls=len(ordered),
            mean_ms=1e3 * sum(ordered) / len(ordered),
            p50_ms=1e3 * p50_s,
            p95_ms=1e3 * p95_s,
            p99_ms=1e3 * p99_s,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of the others lies, interpolated between two neighbours.

    This is definition 7 of Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996), and NumPy's
    default.

    Args:
        ordered: at least one value, in ascending order.
        share: 0 is the smallest value, 1 the largest.
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
