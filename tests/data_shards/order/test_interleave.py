"""Which set each position draws from: worked by hand, and within its bounds for any weights."""

from fractions import Fraction

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.order.interleave import Interleave
from data_shards.order.sets import MOST_WEIGHT


def first(weights: list[int], count: int) -> list[int]:
    return Interleave(weights).locate(np.arange(count, dtype=np.int64))[0].tolist()


def test_worked_by_hand() -> None:
    """Of 3 : 1, the lighter set has p / 4, rounded, of the first p: 0 0 1 1 1 1 2 2 2 2 3 for p = 0 ... 10.

    Of 1 : 1 it has p / 2, halves up: 0 1 1 2 2. With 3 : 1 : 1, the two light sets have 2 p / 5, rounded,
    0 0 1 1 2 2 for p = 0 ... 5: the positions 1 and 3; and these two alternate.
    """
    assert first([3, 1], 10) == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert first([1, 1], 4) == [0, 1, 0, 1]
    assert first([3, 1, 1], 5) == [0, 1, 0, 2, 0]
    assert first([7], 3) == [0, 0, 0]
    assert first([600, 200], 10) == first([3, 1], 10)


WEIGHTS = [[4, 1], [1, 1], [2, 7], [999_983, 17], [1, 2**30], [1] * 10, [5, 3, 2], [64, 32, 8, 1, 1]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("start", [0, 10**6 - 3, 10**13])
def test_windows_have_their_share(weights: list[int], start: int) -> None:
    """In every window of B positions a set has B * share samples, less than one off for two sets."""
    interleave, total = Interleave(weights), sum(weights)
    chosen, own = interleave.locate(np.arange(start, start + 3000, dtype=np.int64))
    counts = interleave.counts(np.array([start, start + 3000]))
    for k, weight in enumerate(weights):
        mine = np.concatenate([[0], np.cumsum(chosen == k)])
        assert mine[-1] == counts[1, k] - counts[0, k]
        assert (own[chosen == k] == np.arange(counts[0, k], counts[1, k])).all()  # each draw once, in order
        exact = Fraction(start * weight, total)
        bound = Fraction(1, 2) if len(weights) == 2 else Fraction(3, 2)
        assert abs(counts[0, k] - exact) <= bound
        for size in (1, 2, 7, 64, 1000):
            inside = mine[size:] - mine[:-size]
            off = np.abs(inside - size * weight / total).max()
            assert off < (1 + 1e-9 if len(weights) == 2 else 3)


@pytest.mark.parametrize("weights", WEIGHTS[:4] + WEIGHTS[5:], ids=str)
def test_a_round_has_every_weight_exactly(weights: list[int]) -> None:
    total = sum(weights)
    for rounds in (1, 3, 10**6):
        assert Interleave(weights).counts(np.array(rounds * total)).tolist() == [rounds * w for w in weights]


def test_wrong_weights() -> None:
    for weights in ([], [1, 0], [-1]):
        with pytest.raises(DataError, match="whole numbers from 1"):
            Interleave(weights)
    with pytest.raises(DataError, match=f"at most {MOST_WEIGHT - 1}"):
        Interleave([MOST_WEIGHT - 1, 1])
