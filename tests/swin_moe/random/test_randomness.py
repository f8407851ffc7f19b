"""Keyed draws against integer arithmetic in plain Python, and their statistics.

Statistical bounds are 4 standard deviations of the estimate; the seeds are fixed, so they hold always.
"""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.random.keyed import (
    Dropout,
    DropPath,
    SiteCounter,
    branch_scales,
    fold_in,
    keep_mask,
    normal,
    sample_keys,
    uniform,
)

MASK_64, MASK_32 = 2**64 - 1, 2**32 - 1
GOLDEN = 0x9E3779B97F4A7C15
KEYS = sample_keys(11, torch.arange(512))


def mix(z: int) -> int:
    """The finaliser of splitmix64 (Steele et al. 2014) on unsigned integers that do not wrap."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK_64
    return z ^ (z >> 31)


def hash_32(key: int, element: int) -> int:
    """The finaliser of murmur3 (32 bits) over the element's number and both halves of a 64-bit key."""
    h = (element * 0x9E3779B9 + (key & MASK_32)) & MASK_32
    h ^= h >> 16
    h = h * 0x85EBCA6B & MASK_32
    h ^= key >> 32
    h ^= h >> 13
    h = h * 0xC2B2AE35 & MASK_32
    return h ^ (h >> 16)


def unsigned(values: Tensor) -> list[int]:
    return [value % 2**64 for value in values.reshape(-1).tolist()]


def signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.reshape(-1).double(), b.reshape(-1).double()]))[0, 1].item()


def test_fork_gives_the_published_outputs_of_splitmix64() -> None:
    """The first five outputs for seed 1234567, as Rosetta Code and the xoshiro authors' C code give them."""
    key = torch.tensor([1234567])
    assert [unsigned(fold_in(key, i))[0] for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**62, -5])
def test_sample_keys_equal_integer_arithmetic(seed: int) -> None:
    positions = [0, 1, 2, 1000, 2**40, 2**63 - 1]
    expected = [mix(mix((seed + GOLDEN) & MASK_64) + p * GOLDEN & MASK_64) for p in positions]
    assert unsigned(sample_keys(seed, torch.tensor(positions))) == expected


def test_fork_equals_integer_arithmetic() -> None:
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    numbers = [0, 1, 7, 10**6]
    expected = [[mix((key + (number + 1) * GOLDEN) & MASK_64) for number in numbers] for key in keys]
    together = fold_in(torch.tensor(keys)[:, None], torch.tensor(numbers))
    assert [unsigned(row) for row in together] == expected
    for column, number in enumerate(numbers):  # a plain int takes another path to the same number
        assert unsigned(fold_in(torch.tensor(keys), number)) == [row[column] for row in expected]


def test_uniform_equals_integer_arithmetic() -> None:
    """The upper 23 bits of each output, in the middle of their interval of width 2^-23."""
    keys = [5, 2**63, MASK_64]
    draws = uniform(torch.tensor([signed(key) for key in keys]), 3)
    expected = [
        [((mix(key + (i + 1) * GOLDEN & MASK_64) >> 41) + 0.5) / 2**23 for i in range(3)] for key in keys
    ]
    assert draws.tolist() == torch.tensor(expected).tolist()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_keep_mask_equals_integer_arithmetic(rate: float) -> None:
    """An element is kept when its hash, read as a signed number, is not among the lowest `rate` of them."""
    keys = [0, 1, 2**31, 2**32 + 7, 2**63, MASK_64, 0x0123456789ABCDEF]
    mask = keep_mask(torch.tensor([signed(key) for key in keys]), 50, rate)
    for row, key in enumerate(keys):
        hashes = [hash_32(key, i) for i in range(50)]
        lowest = int(rate * 2**32)
        expected = [(h + 2**31) % 2**32 >= lowest for h in hashes]  # signed order: 2^31 is the lowest
        assert mask[row].tolist() == expected


@pytest.mark.parametrize(("start", "n"), [(0, 50), (7, 13), (49, 1), (20, 0)])
def test_keep_mask_of_some_columns_is_that_of_all(start: int, n: int) -> None:
    mask = keep_mask(KEYS[:8], 50, 0.3)
    assert torch.equal(keep_mask(KEYS[:8], n, 0.3, start=start), mask[:, start : start + n])


def test_uniform_range_mean_and_variance() -> None:
    draws = uniform(KEYS, 1000).double()
    assert draws.dtype == torch.float64
    assert draws.min() > 0.0
    assert draws.max() < 1.0
    n = draws.numel()
    assert abs(draws.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    # variance of (u - 1/2)^2: 1/80 - 1/144 = 1/180
    assert abs(draws.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)


def test_uniform_fills_sixteen_bins_evenly() -> None:
    draws = uniform(KEYS, 1000)
    counts = torch.histc(draws, 16, 0, 1).double()
    expected = draws.numel() / 16
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 15 + 4 * math.sqrt(2 * 15)  # 15 degrees of freedom: mean 15, variance 30


def unmix(z: int) -> int:
    """The inverse of `mix`: each of its steps is a bijection of 64 bits."""
    z ^= (z >> 31) ^ (z >> 62)
    z = z * pow(0x94D049BB133111EB, -1, 2**64) & MASK_64
    z ^= (z >> 27) ^ (z >> 54)
    z = z * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK_64
    return z ^ (z >> 30) ^ (z >> 60)


def draw_of_word(word: int) -> float:
    """The first uniform draw of the key whose first output is this 64-bit word."""
    key = (unmix(word) - GOLDEN) & MASK_64
    assert unsigned(fold_in(torch.tensor([signed(key)]), 0)) == [word]
    return uniform(torch.tensor([signed(key)]), 1).item()


def test_uniform_is_above_zero() -> None:
    """The lowest word gives half a step, 2^-24: its logarithm is finite."""
    assert draw_of_word(0) == 2.0**-24


def test_uniform_is_below_one() -> None:
    """The highest word gives one less half a step; with 24 bits fp32 would round it up to 1."""
    assert draw_of_word(MASK_64) == 1.0 - 2.0**-24


def test_normal_moments() -> None:
    """Mean 0, variance 1, third moment 0, fourth 3; variances of the estimates 1/n, 2/n, 15/n, 96/n."""
    draws = normal(KEYS, 1000).double()
    n = draws.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((draws**power).mean() - moment) < 4 * math.sqrt(variance / n)


def test_normal_pairs_are_box_and_muller() -> None:
    """x = r cos, y = r sin: exp(-(x^2 + y^2) / 2) and the angle / 2 pi are the two uniforms, independent."""
    x, y = normal(KEYS, 2).double().unbind(1)
    first, second = torch.exp(-(x**2 + y**2) / 2), torch.atan2(y, x) / (2 * math.pi) % 1.0
    for draws in (first, second):
        assert abs(draws.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / len(KEYS))
        assert abs((draws**2).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / len(KEYS))
    assert abs(correlation(first, second)) < 4 / math.sqrt(len(KEYS))


def test_an_odd_number_of_normals_is_a_prefix_of_columns() -> None:
    """Three columns come from two pairs: cos, cos, sin."""
    assert torch.equal(normal(KEYS, 3), normal(KEYS, 4)[:, :3])


def test_normal_draws_of_a_row_and_of_neighbouring_rows_are_uncorrelated() -> None:
    draws = normal(fold_in(KEYS[:1], torch.arange(512)), 1000)
    bound = 4 / math.sqrt(draws.numel())
    assert abs(correlation(draws[:, 1:], draws[:, :-1])) < bound
    assert abs(correlation(draws[1:], draws[:-1])) < bound


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("tokens", [False, True], ids=["samples", "tokens-of-one-sample"])
def test_keep_mask_drops_at_its_rate(rate: float, tokens: bool) -> None:
    keys = fold_in(KEYS[:1], torch.arange(512)) if tokens else KEYS
    dropped = (~keep_mask(keys, 2048, rate)).double()
    sigma = math.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) < 4 * sigma / math.sqrt(dropped.numel())
    # The most extreme of 512 row means and of 2048 column means stays inside 5 standard deviations.
    assert (dropped.mean(1) - rate).abs().max() < 5 * sigma / math.sqrt(2048)
    assert (dropped.mean(0) - rate).abs().max() < 5 * sigma / math.sqrt(512)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_keep_masks_of_neighbours_are_uncorrelated(rate: float) -> None:
    """Between tokens, between elements, between sites, and between choices of the same token."""
    tokens = fold_in(KEYS[:1], torch.arange(256))
    mask = keep_mask(fold_in(tokens, 3), 2048, rate)
    bound = 4 / math.sqrt(mask.numel())
    for lag in (1, 2, 16, 64):
        assert abs(correlation(mask[:, lag:], mask[:, :-lag])) < bound * 1.1
        assert abs(correlation(mask[lag:], mask[:-lag])) < bound * 1.2
    assert abs(correlation(mask, keep_mask(fold_in(tokens, 4), 2048, rate))) < bound
    choices = [keep_mask(fold_in(fold_in(tokens, choice), 3), 2048, rate) for choice in (0, 1)]
    assert abs(correlation(*choices)) < bound


def test_a_key_owns_its_draws_whatever_the_batch() -> None:
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    for draw in (
        lambda keys: uniform(keys, 7),
        lambda keys: normal(keys, 7),
        lambda keys: keep_mask(keys, 7, 0.3),
    ):
        whole = draw(KEYS)
        assert torch.equal(draw(KEYS), whole)  # the same again
        assert torch.equal(draw(KEYS[order]), whole[order])  # in another order
        assert torch.equal(torch.cat([draw(KEYS[:100]), draw(KEYS[100:])]), whole)  # in pieces


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    normal(KEYS, 3), keep_mask(KEYS, 3, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_of_seeds_and_positions_are_distinct() -> None:
    keys = torch.cat([sample_keys(seed, torch.arange(10000)) for seed in range(5)])
    assert len(keys.unique()) == 50000


def test_sites_count_from_zero() -> None:
    sites = SiteCounter()
    assert [sites.next() for _ in range(3)] == [0, 1, 2]


def test_dropout_scales_what_it_keeps() -> None:
    """Each kept element is divided by 1 - rate = 0.8; the mask is the one of (key, site)."""
    x = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    y = Dropout(0.2, site=9)(x, KEYS[:6])
    keep = keep_mask(fold_in(KEYS[:6], 9), 15, 0.2).view(6, 3, 5)
    assert 0 < (~keep).sum() < 90
    torch.testing.assert_close(y, torch.where(keep, x / 0.8, torch.zeros_like(x)), rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, keep / torch.tensor(0.8).double(), rtol=1e-6, atol=0)


def test_dropout_is_the_identity_where_it_should_be() -> None:
    x = torch.randn(4, 5)
    assert Dropout(0.5, site=0).eval()(x, KEYS[:4]) is x
    assert Dropout(0.0, site=0)(x, KEYS[:4]) is x
    assert Dropout(0.5, site=0)(x[:0], KEYS[:0]).shape == (0, 5)


def scales_by_single_draws(drop_paths: list[DropPath], keys: Tensor, dtype: torch.dtype) -> Tensor:
    """One draw after the other, as the definition reads: kept where the draw is not below the rate."""
    rows = []
    for drop_path in drop_paths:
        keep = uniform(fold_in(keys, drop_path.site), 1)[:, 0] >= drop_path.rate
        rows.append(keep.to(dtype) / (1.0 - drop_path.rate))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "rates", [(0.75,), (0.0, 0.1, 0.2), (0.3, 2**-23, 1 / 3, 0.999), (0.2,) * 46], ids=len
)
def test_branch_scales_are_those_of_single_draws(rates: tuple[float, ...], dtype: torch.dtype) -> None:
    """Bit for bit, in every precision; also after the model was cast to it."""
    drop_paths = [DropPath(rate, site=3 * i) for i, rate in enumerate(rates)]
    expected = scales_by_single_draws(drop_paths, KEYS, dtype)
    assert torch.equal(branch_scales(drop_paths, KEYS, dtype), expected)
    cast = [drop_path.to(dtype) for drop_path in drop_paths]
    assert torch.equal(branch_scales(cast, KEYS, dtype), expected)
    assert 0 < (expected == 0).sum() < expected.numel()


@pytest.mark.parametrize("word", [0, 2**22 - 1, 2**22, 2**23 - 1])
@pytest.mark.parametrize("nudge", [-1, 0, 1])
def test_a_draw_at_the_rate_is_kept_and_one_below_is_not(word: int, nudge: int) -> None:
    """The draw of a word of 23 bits is (word + 0.5) / 2^23; the rate is that, or its neighbour in fp32."""
    draw = torch.tensor((word + 0.5) / 2**23)
    rate = draw if nudge == 0 else torch.nextafter(draw, torch.tensor(float(nudge > 0)))
    key = signed((unmix((unmix(word << 41) - GOLDEN) & MASK_64) - GOLDEN) & MASK_64)  # of site 0
    assert uniform(fold_in(torch.tensor([key]), 0), 1).item() == draw
    scale = branch_scales([DropPath(rate.item(), site=0)], torch.tensor([key]), torch.float32)
    assert (scale > 0).item() == (draw >= rate).item()


def test_branch_scales_drop_at_the_rate_and_keep_the_mean() -> None:
    """Rate 0.75: a sample is 0, or 1 / (1 - 0.75) = 4 times itself."""
    (scale,) = branch_scales([DropPath(0.75, site=2)], KEYS, torch.float32)
    assert {*scale.tolist()} == {0.0, 4.0}
    assert abs((scale > 0).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 512)


def test_no_branch_is_scaled_where_nothing_is_dropped() -> None:
    layer = DropPath(0.75, site=2)
    assert branch_scales([layer.eval()], KEYS, torch.float32) is None
    assert branch_scales([DropPath(0.0, site=2)] * 2, KEYS, torch.float32) is None
