import numpy as np

from data_shards.format.rng import fold, hashes, permutation, uniform
from parallel.counter_rng import GAMMA, MASK, splitmix64


def test_scalar_and_vector_agree_for_any_key() -> None:
    key = fold(5, -1, 2**63)
    assert hashes(key, 3).tolist() == [splitmix64((key + i * GAMMA) & MASK) for i in range(3)]
    assert uniform(key, 2) == (int(hashes(key, 3)[2]) >> 11) / 2**53


def test_order_of_words_matters_and_draws_are_even() -> None:
    assert fold(1, 2) != fold(2, 1)
    draws = [uniform(fold(9), i) for i in range(4000)]
    assert abs(np.mean(draws) - 0.5) < 0.02
    assert min(draws) >= 0
    assert max(draws) < 1


def test_permutation_sorts_its_draws() -> None:
    draws = hashes(fold(4, 2), 6).tolist()
    assert permutation(6, 4, 2).tolist() == sorted(range(6), key=lambda i: draws[i])
