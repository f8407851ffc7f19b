"""All combinations of some values as parameters of a test; by default as many as have every pair of values.

A mistake that needs three values at once to show is left to the slow tests.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

STRIDE = 7  # through the combinations, so that neighbours differ in more than the last value


def pairwise(*values: Sequence[Any]) -> list[Any]:
    """Every combination, as `pytest.param`."""
    combinations = list(itertools.product(*values))
    kept = covering([dict(enumerate(one)) for one in combinations])
    return [pytest.param(*one, marks=_slow(is_kept)) for one, is_kept in zip(combinations, kept, strict=True)]


def pairwise_of(cases: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Every case of options with their values, each one parameter."""
    return [
        pytest.param(case, marks=_slow(is_kept)) for case, is_kept in zip(cases, covering(cases), strict=True)
    ]


def covering(cases: Sequence[Mapping[Any, Any]]) -> list[bool]:
    """Which cases have a pair of values that none before them has, in an order of its own."""
    stride = next(step for step in itertools.count(STRIDE) if math.gcd(step, len(cases)) == 1)
    kept, seen = [False] * len(cases), set[frozenset[tuple[Any, str]]]()
    for number in range(len(cases)):
        index = number * stride % len(cases)
        items = [(name, repr(value)) for name, value in cases[index].items()]
        pairs = {frozenset(pair) for pair in itertools.combinations(items, 2)}
        kept[index] = bool(pairs - seen)
        seen |= pairs
    return kept


def _slow(is_kept: bool) -> list[pytest.MarkDecorator]:
    return [] if is_kept else [pytest.mark.slow]
