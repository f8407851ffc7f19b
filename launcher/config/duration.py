"""Durations as a person writes them, "20 epochs", "500 steps" or "1000000 images", in optimizer steps."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_FORM = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s+(epoch|step|image)s?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Duration:
    """An exact amount of one unit; only epochs come in fractions."""

    amount: Fraction
    unit: Literal["epoch", "step", "image"]


def parse_duration(text: str) -> Duration:
    """Read "20 epochs", "0.5 epochs", "500 steps" or "1_000_000 images", plural or singular.

    Raises:
        ValueError: with the accepted forms and the text.
    """
    match = _FORM.fullmatch(text.strip())
    amount = Fraction(match[1].replace("_", "")) if match else Fraction(0)
    if not match or (match[2] != "epoch" and amount.denominator != 1):
        raise ValueError(
            f"a duration reads '20 epochs', '0.5 epochs', '500 steps' or '1_000_000 images', not {text!r}"
        )
    return Duration(amount=amount, unit=match[2])  # type: ignore[arg-type]  # the pattern names the units


def parse_evaluations(text: str) -> int | None:
    """Read "5 evaluations" or "1 evaluation"; None for any other text."""
    match = re.fullmatch(r"([0-9]+)\s+evaluations?", text.strip(), re.ASCII)
    return int(match[1]) if match else None


def to_steps(text: str, *, global_batch_size: int, num_samples: int | None) -> int:
    """Count the optimizer steps of a duration, rounded up: the partial step that ends an epoch counts.

    The whole duration is rounded once, and exactly: "20 epochs" of 10 images at 4 a step are
    ceil(20 * 10 / 4) = 50 steps, not 20 * ceil(10 / 4) = 60. Any duration but 0 is at least one step.

    Args:
        text: a duration, see `parse_duration`.
        global_batch_size: images an optimizer step.
        num_samples: images an epoch; None where nobody has counted them, and epochs cannot be had.

    Raises:
        ValueError: if the text is no duration, or one in epochs of unknown size, or a size is below 1.
    """
    for name, size in (("global_batch_size", global_batch_size), ("num_samples", num_samples)):
        if size is not None and size < 1:
            raise ValueError(f"{name} ({size}) must be at least 1")
    duration = parse_duration(text)
    images = {"epoch": num_samples, "step": global_batch_size, "image": 1}[duration.unit]
    if images is None:
        raise ValueError(
            f"{text!r} needs the number of images, which only a manifest tells (`swin-moe shards index` "
            "writes it); give it in steps or images"
        )
    return math.ceil(duration.amount * images / global_batch_size)
