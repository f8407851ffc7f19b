"""Durations, worked by hand."""

from fractions import Fraction

import pytest

from launcher.config.duration import Duration, parse_duration, to_steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("20 epochs", 50),  # 20 * 10 / 4 = 50, not 20 * ceil(10 / 4) = 60
        ("1 epoch", 3),  # 10 / 4 = 2.5: the partial step counts
        ("0.5 epochs", 2),  # 5 / 4 = 1.25
        ("0.01 epochs", 1),
        ("0 epochs", 0),
        ("500 steps", 500),
        ("1 step", 1),
        ("1 image", 1),
        ("8 images", 2),
        ("9 images", 3),
        ("1_000_000 images", 250_000),
        (" 3   steps ", 3),
    ],
)
def test_steps_of_ten_images_at_four_a_step(text: str, steps: int) -> None:
    assert to_steps(text, global_batch_size=4, num_samples=10) == steps


def test_rounding_is_exact() -> None:
    # 0.07 epochs of 100 images at 1 a step are 7 steps; in floats 0.07 * 100 = 7.000000000000001, so 8
    assert to_steps("0.07 epochs", global_batch_size=1, num_samples=100) == 7


def test_parse_keeps_the_amount_and_the_unit() -> None:
    assert parse_duration("0.5 epochs") == Duration(amount=Fraction(1, 2), unit="epoch")
    assert parse_duration("1_000 images") == Duration(amount=Fraction(1000), unit="image")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "epochs",
        "20epochs",
        "-1 epochs",
        "1e3 steps",
        "0.5 steps",
        "1.5 images",
        "1__0 steps",
        "_1 steps",
    ],
)
def test_what_is_no_duration_shows_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="a duration reads") as caught:
        parse_duration(text)
    assert str(caught.value) == (
        f"a duration reads '20 epochs', '0.5 epochs', '500 steps' or '1_000_000 images', not {text!r}"
    )


def test_sizes_below_one_and_unknown_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"^num_samples \(0\) must be at least 1$"):
        to_steps("1 epoch", global_batch_size=4, num_samples=0)
    with pytest.raises(
        ValueError, match=r"^'2 epochs' needs the number of images, which only a manifest tells"
    ):
        to_steps("2 epochs", global_batch_size=4, num_samples=None)
    assert to_steps("10 images", global_batch_size=4, num_samples=None) == 3
    with pytest.raises(ValueError, match=r"^global_batch_size \(0\) must be at least 1$"):
        to_steps("1 step", global_batch_size=0, num_samples=10)
