"""Of all combinations the default tests have every pair of values."""

import itertools

from tests.pairwise import covering, pairwise


def test_every_pair_is_kept_and_most_combinations_are_not() -> None:
    sizes = (2, 2, 2, 4, 3)
    cases = [dict(enumerate(one)) for one in itertools.product(*map(range, sizes))]
    kept = [case for case, is_kept in zip(cases, covering(cases), strict=True) if is_kept]
    for a, b in itertools.combinations(range(len(sizes)), 2):
        assert {(case[a], case[b]) for case in kept} == set(
            itertools.product(range(sizes[a]), range(sizes[b]))
        )
    assert len(kept) < len(cases) / 4


def test_two_values_are_all_combinations() -> None:
    parameters = pairwise([1, 2], "abc")
    assert [one.values for one in parameters] == list(itertools.product([1, 2], "abc"))
    assert not any(one.marks for one in parameters)
