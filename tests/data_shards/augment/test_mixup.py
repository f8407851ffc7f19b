"""Pairs, mixing shares and boxes, against their definitions."""

import numpy as np
import pytest
import torch

from data_shards.augment.mixup import Beta, Mixer, Targets, partners, weights
from data_shards.errors import DataError

POSITIONS = torch.arange(40_000)


def test_partners_are_found_in_any_order() -> None:
    assert partners(torch.tensor([6, 10, 7, 11])).tolist() == [2, 3, 0, 1]
    assert partners(torch.tensor([2**40 + 1, 4, 2**40, 5])).tolist() == [2, 3, 0, 1]
    assert partners(torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("positions", [[0], [1, 2], [0, 1, 2], [0, 0], [0, 3], [0, 1, 3, 4]])
def test_a_torn_pair_is_refused(positions: list[int]) -> None:
    with pytest.raises(DataError, match="micro_batch_size even"):
        partners(torch.tensor(positions))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_beta_has_its_moments_and_its_symmetry(alpha: float) -> None:
    even = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = Beta(alpha)(even).numpy()
    assert np.all(np.diff(drawn) >= 0)
    assert drawn[0] >= 0
    assert drawn[-1] <= 1
    np.testing.assert_allclose(drawn, 1 - drawn[::-1], atol=1e-9)
    variance = 1 / (4 * (2 * alpha + 1))
    kurtosis = 3 - 6 / (2 * alpha + 3)  # excess kurtosis of Beta(a, a) is -6 / (2a + 3)
    np.testing.assert_allclose(drawn.var(), variance, rtol=1e-3)
    np.testing.assert_allclose(np.mean((drawn - 0.5) ** 4) / variance**2, kurtosis, rtol=2e-3)


def test_beta_one_is_uniform() -> None:
    even = torch.linspace(0, 0.999, 100, dtype=torch.float64)
    torch.testing.assert_close(Beta(1.0)(even), even, atol=1e-9, rtol=0)


def test_a_pair_has_one_draw_and_half_of_the_pairs_cut() -> None:
    mix = Mixer(0.8, 1.0, 1.0, 0.5).draw(4, POSITIONS, (56, 56))
    for part in mix:
        assert torch.equal(part[::2], part[1::2])
    cut = mix.cut[::2]
    assert abs(cut.double().mean() - 0.5) < 0.012  # 3.4 standard errors of 20,000 pairs
    mixed = mix.lam[::2][~cut]
    assert abs(mixed.mean() - 0.5) < 0.012
    assert abs(mixed.var() - 1 / (4 * 2.6)) < 0.003
    assert not mix.box[~mix.cut].any()
    assert len(mix.lam.unique()) > 10_000


def test_cutmix_share_is_the_area_outside_the_box() -> None:
    mix = Mixer(0.0, 1.0, 1.0, 0.5).draw(4, POSITIONS, (56, 56))
    assert mix.cut.all()  # the only kind there is
    outside = weights(mix, (56, 56))[:2000].mean((1, 2, 3))
    torch.testing.assert_close(outside, mix.lam[:2000].float())
    top, bottom, left, right = mix.box.unbind(1)
    assert (top >= 0).all()
    assert (bottom <= 56).all()
    assert (left >= 0).all()
    assert (right <= 56).all()
    # before clipping a side is 2 x (int(56 sqrt(1 - lam)) // 2), about a centre drawn from 0 ... 55
    assert (top == 0).any()
    assert (bottom == 56).any()
    unclipped = (top > 0) & (bottom < 56) & (left > 0) & (right < 56)
    assert ((bottom - top) == (right - left))[unclipped].all()


def test_probability_and_switch() -> None:
    some = Mixer(0.8, 1.0, 0.3, 0.25).draw(4, POSITIONS, (56, 56))
    mixed = some.cut | (some.lam < 1)
    assert abs(mixed.double().mean() - 0.3) < 0.012
    assert abs(some.cut.double().mean() - 0.075) < 0.008
    only = Mixer(0.8, 0.0, 1.0, 0.5).draw(4, POSITIONS, (56, 56))
    assert not only.cut.any()


def test_soft_targets_by_hand() -> None:
    # 0.75 of class 1 and 0.25 of class 2; a sample that is mixed with its own class stays whole
    targets = Targets(torch.tensor([1, 3]), torch.tensor([2, 3]), torch.tensor([0.75, 0.4]))
    expected = [[0.0, 0.75, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]
    torch.testing.assert_close(targets.soft(4), torch.tensor(expected))
