"""What each gather degree moves, against numbers worked by hand."""

import pytest

from parallel.experts.gather_degree import (
    bytes_of_row,
    bytes_received,
    candidate_degrees,
    cheapest_degree,
    copies_of_row,
)
from parallel.experts.options import ExchangeOptions, Strategy


@pytest.mark.parametrize(("strategy", "degrees"), [("ep", [1]), ("dp", [8]), ("auto", [1, 2, 8]), (4, [4])])
def test_candidates(strategy: Strategy, degrees: list[int]) -> None:
    assert candidate_degrees(strategy, ep_size=8, expert_tensor_parallel_size=2) == degrees
    assert candidate_degrees(strategy, ep_size=1, expert_tensor_parallel_size=1) == [1]


def test_rows_travel_to_every_part_that_stays_apart() -> None:
    assert [copies_of_row(4, degree) for degree in (1, 2, 4, 8)] == [4, 2, 1, 1]


def test_bytes_of_a_row() -> None:
    same, bf16 = ExchangeOptions(), ExchangeOptions(communication_dtype="bf16")
    assert bytes_of_row(same, channels=10, element_size=4, keyed=False) == 80  # 40 there, 40 back
    assert bytes_of_row(same, channels=10, element_size=4, keyed=True) == 88  # the key goes there alone
    assert bytes_of_row(bf16, channels=10, element_size=4, keyed=False) == 40
    assert bytes_of_row(bf16, channels=10, element_size=2, keyed=False) == 40  # no fewer than bf16's own


def test_bytes_that_a_rank_receives() -> None:
    """Of 4 ranks, 2 slices an expert, 1000 bytes of weights and 100 rows of 10 bytes."""
    received = [
        bytes_received(
            degree, ep_size=4, expert_tensor_parallel_size=2, weight_bytes=1000, row_bytes=10, rows=100
        )
        for degree in (1, 2, 4)
    ]
    # degree 1: each row to 2 ranks, 3 of 4 leave: 2000 * 3/4; 2: a quarter of the weights, half of 1000 bytes
    # of rows; 4: three quarters of the weights
    assert received == [1500.0, 250.0 + 500.0, 750.0]


def test_the_cheapest_depends_on_rows_and_weights() -> None:
    few = {"ep_size": 4, "expert_tensor_parallel_size": 1, "weight_bytes": 1000, "row_bytes": 10, "rows": 10}
    many = few | {"rows": 1000}
    assert cheapest_degree("auto", **few) == 1  # 75 bytes of rows against 750 of weights
    assert cheapest_degree("auto", **many) == 4  # 7500 against 750
    assert cheapest_degree("ep", **many) == 1
