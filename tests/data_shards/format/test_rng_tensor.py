"""The tensors' draws are the scalars' draws."""

import numpy as np
import torch

from data_shards.format import rng
from data_shards.format.rng import Purpose
from data_shards.format.rng_tensor import bits, keys, normals, uniforms

POSITIONS = [0, 1, 2, 63, 12_345_678_901, 2**62]


def test_keys_and_uniforms_are_those_of_draws() -> None:
    for seed in (0, 7, -3, 2**63 + 5):
        ours = keys(Purpose.MIX, seed, torch.tensor(POSITIONS))
        theirs = [rng.fold(Purpose.MIX, seed, position) for position in POSITIONS]
        assert [key % 2**64 for key in ours.tolist()] == theirs
        for view in range(3):
            of_view = keys(Purpose.MIX, seed, torch.tensor(POSITIONS), view)
            drawn = [rng.DrawKey(seed, position, view).draws(Purpose.MIX) for position in POSITIONS]
            assert [key % 2**64 for key in of_view.tolist()] == drawn
        expected = [[rng.uniform(key, i) for i in range(5)] for key in theirs]
        assert uniforms(ours, 5).tolist() == expected


def test_bits_are_the_reference_sequence() -> None:
    key = rng.fold(5, 9)
    ours = bits(torch.tensor([key - 2**64 if key >= 2**63 else key]), torch.arange(6))
    assert [value % 2**64 for value in ours.tolist()] == rng.hashes(key, 6).tolist()


def test_normals_are_normal_and_finite_at_both_ends() -> None:
    sample = normals(uniforms(keys(Purpose.ERASE, 1, torch.arange(1000)), 50)).flatten()
    assert abs(sample.mean()) < 0.02  # 4.5 standard errors of 50,000 draws
    assert abs(sample.std() - 1) < 0.015
    for limit, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert abs((sample.abs() < limit).double().mean() - share) < 0.01
    assert normals(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).isfinite().all()
    assert np.isclose(normals(torch.tensor(0.975, dtype=torch.float64)), 1.959964, atol=1e-6)
