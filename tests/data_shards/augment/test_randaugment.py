"""What RandAugment and color jitter draw: their distributions, with chi-square bounds at p = 0.001."""

import pytest
import torch
from torch import Tensor

from data_shards.augment.randaugment import JITTER_ORDERS, ImageOp, RandAugment, draw_color_jitter
from data_shards.errors import DataError

SWIN = RandAugment(magnitude=9.0, magnitude_std=0.5)
SAMPLES = 30_000
POSITIONS = torch.arange(SAMPLES) * 7 + 1


def chi_square(counts: Tensor) -> float:
    """Of counts that should be equal."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def levels(op: ImageOp, plan_seed: int = 0) -> Tensor:
    """The arguments that were drawn for one operation."""
    plan = SWIN.draw(plan_seed, POSITIONS, (200, 100))
    return plan.arguments[plan.ops == op]


def test_operations_are_even_independent_and_applied_half_the_time() -> None:
    ops = SWIN.draw(3, POSITIONS, (192, 192)).ops
    assert ops.shape == (SAMPLES, 2)
    applied = ops != ImageOp.NOTHING
    assert abs(applied.double().mean() - 0.5) < 0.007  # 3.4 standard errors
    assert chi_square(torch.bincount(ops[applied], minlength=15)) < 36.1  # 14 degrees of freedom
    both = applied.all(1)
    assert abs(both.double().mean() - 0.25) < 0.009
    pairs = torch.bincount(ops[both][:, 0] * 15 + ops[both][:, 1], minlength=225)
    assert chi_square(pairs) < 294.5  # 224 degrees of freedom: with replacement, any pair


def test_magnitude_is_normal_and_clipped() -> None:
    # shear is 0.3 x level / 10; P(N(9, 0.5) > 10) = P(z > 2) = 0.0228
    level = levels(ImageOp.SHEAR_X).abs().double() / 0.03
    assert abs(level.mean() - 8.992) < 0.06  # clipping takes 0.5 x 0.0085 x 2 off the mean
    assert 0.44 < level.std() < 0.54
    assert abs((level > 9.9999).double().mean() - 0.0228) < 0.015
    assert level.max() <= 10.0001
    signs = (levels(ImageOp.SHEAR_X) > 0).double().mean()
    assert abs(signs - 0.5) < 0.06


@pytest.mark.parametrize(
    ("op", "low", "high"),
    [
        (ImageOp.ROTATE, -30, 30),
        (ImageOp.POSTERIZE, 1, 2),  # 4 - int(level / 10 x 4), at least 1; 2 below level 7.5
        (ImageOp.SOLARIZE, 0, 80),  # 256 - int(level / 10 x 256), 26 at level 9
        (ImageOp.SOLARIZE_ADD, 77, 110),
        (ImageOp.COLOR, 0.1, 1.9),
        (ImageOp.SHARPNESS, 0.1, 1.9),
        (ImageOp.TRANSLATE_X, -45, 45),  # 0.45 x 100 pixels of the width
        (ImageOp.TRANSLATE_Y, -90, 90),  # 0.45 x 200 pixels of the height
    ],
)
def test_arguments_keep_their_ranges(op: ImageOp, low: float, high: float) -> None:
    drawn = levels(op)
    assert len(drawn) > 1500
    assert low <= drawn.min()
    assert drawn.max() <= high


def test_arguments_at_level_nine_by_hand() -> None:
    plan = RandAugment(magnitude=9.0, num_ops=64).draw(0, torch.arange(64), (100, 200))
    expected = {
        ImageOp.ROTATE: {27.0, -27.0},
        ImageOp.POSTERIZE: {1.0},  # 4 - int(3.6)
        ImageOp.SOLARIZE: {26.0},  # 256 - int(230.4)
        ImageOp.SOLARIZE_ADD: {99.0},
        ImageOp.BRIGHTNESS: {1.81, 0.19},
        ImageOp.CONTRAST: {1.81, 0.19},
        ImageOp.SHEAR_Y: {0.27, -0.27},
        ImageOp.TRANSLATE_X: {81.0, -81.0},  # 0.9 x 0.45 x the width
        ImageOp.TRANSLATE_Y: {40.5, -40.5},
        ImageOp.EQUALIZE: {0.0},
    }
    for op, values in expected.items():
        assert {round(value, 4) for value in plan.arguments[plan.ops == op].tolist()} == values
    black = RandAugment(magnitude=10.0, num_ops=64).draw(0, torch.arange(64), (100, 200))
    assert black.arguments[black.ops == ImageOp.POSTERIZE].unique().tolist() == [
        1.0
    ]  # timm: 0, a black image


def test_notation() -> None:
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == SWIN
    assert RandAugment.parse("rand-inc1-n3-m7.5") == RandAugment(magnitude=7.5, num_ops=3)
    for text in ("rand-m9-mstd0.5", "augmix-m3", "rand-m9-inc1-w0", "rand-m9x-inc1", "", "rand-m99-inc1"):
        with pytest.raises(DataError, match="rand-m9-mstd0.5-inc1"):
            RandAugment.parse(text)


def test_color_jitter_has_every_order_and_even_factors() -> None:
    plan = draw_color_jitter(0.4, 1, POSITIONS)
    orders = torch.tensor(JITTER_ORDERS)
    which = (plan.ops[:, None] == orders).all(2).long().argmax(1)
    assert (plan.ops == orders[which]).all()
    assert chi_square(torch.bincount(which, minlength=6)) < 20.5  # 5 degrees of freedom
    tenths = ((plan.arguments.flatten() - 0.6) / 0.08).long().clamp(max=9)
    assert chi_square(torch.bincount(tenths, minlength=10)) < 27.9  # 9 degrees of freedom
    assert plan.arguments.min() >= 0.6
    assert plan.arguments.max() <= 1.4
    assert draw_color_jitter(3.0, 1, POSITIONS).arguments.min() >= 0
