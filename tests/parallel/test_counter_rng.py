"""Integers, arrays and tensors give the words of the reference program."""

import numpy as np
import torch

from parallel.counter_rng import (
    GAMMA,
    MASK,
    mix64_array,
    mix64_tensor,
    shift_right,
    signed,
    splitmix64,
    splitmix64_tensor,
)

# The first outputs of the reference C program (prng.di.unimi.it/splitmix64.c) for the seed 1234567.
REFERENCE = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
STATES = [(1234567 + i * GAMMA) & MASK for i in range(4)]
WORDS = [0, 1, 2**31, 2**32 + 7, 2**63 - 1, 2**63, MASK, 0x0123456789ABCDEF]


def test_the_reference_sequence() -> None:
    assert [splitmix64(state) for state in STATES] == REFERENCE
    tensor = splitmix64_tensor(torch.tensor([signed(state) for state in STATES]))
    assert [word & MASK for word in tensor.tolist()] == REFERENCE


def test_integers_arrays_and_tensors_mix_alike() -> None:
    expected = [splitmix64((word - GAMMA) & MASK) for word in WORDS]
    assert mix64_array(np.array(WORDS, dtype=np.uint64)).tolist() == expected
    tensor = mix64_tensor(torch.tensor([signed(word) for word in WORDS]).view(2, 4))
    assert [word & MASK for word in tensor.flatten().tolist()] == expected


def test_signed_keeps_the_low_64_bits() -> None:
    assert [signed(0), signed(2**63 - 1), signed(2**63), signed(MASK)] == [0, 2**63 - 1, -(2**63), -1]
    assert signed(2**64 + 5) == 5


def test_shift_right_fills_with_zeros() -> None:
    assert shift_right(torch.tensor([-1, 8]), 60).tolist() == [15, 0]
    assert shift_right(torch.tensor([-1, 8], dtype=torch.int32), 2).tolist() == [2**30 - 1, 2]
