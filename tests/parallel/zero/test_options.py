"""Options of the engine that this project sets in DeepSpeed's place."""

from typing import Any

import pytest

from parallel.zero.options import bucket_elements


@pytest.mark.parametrize(
    ("size", "elements"),
    [
        ({}, 25_000_000),
        ({"reduce_bucket_size": 1000}, 1000),
        ({"reduce_bucket_size": 5e8}, 500_000_000),
        ({"reduce_bucket_size": "auto"}, 500_000_000),  # as DeepSpeed takes it
    ],
)
def test_the_size_of_a_bucket(size: dict[str, Any], elements: int) -> None:
    assert bucket_elements({"zero_optimization": size}, overlaps=True) == elements
    assert bucket_elements({"zero_optimization": size}, overlaps=True, uneven_elements=7) == 7


def test_the_size_of_a_bucket_where_nothing_overlaps() -> None:
    assert bucket_elements({}, overlaps=False) == 500_000_000
