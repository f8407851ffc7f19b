import numpy as np

from data_shards.format.rng import GAMMA, MASK, fold, hashes, permutation, splitmix64, uniform

# The first outputs of the reference C program (prng.di.unimi.it/splitmix64.c) for the seed 1234567.
REFERENCE = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]


def test_the_reference_sequence() -> None:
    assert hashes(1234567, 4).tolist() == REFERENCE
    assert [splitmix64((1234567 + i * GAMMA) & MASK) for i in range(4)] == REFERENCE


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
