"""The options of augmentation, and RandAugment in timm's notation. No torch."""

import re
from dataclasses import dataclass
from typing import Literal, Self

from data_shards.errors import DataError

MAX_LEVEL = 10.0  # of the magnitude
MOST_STD, MOST_OPS = 100.0, 100
EXAMPLE = "rand-m9-mstd0.5-inc1"
GROUP = 2  # samples that mix with each other
ALPHAS = (0.01, 100.0)  # for which the table of `Beta` in mixup.py is exact


@dataclass(frozen=True, kw_only=True)
class RandAugmentOptions:
    """Magnitude 0 ... 10, its standard deviation, and operations per sample; DataError out of range."""

    magnitude: float = MAX_LEVEL
    magnitude_std: float = 0.0
    num_ops: int = 2

    def __post_init__(self) -> None:
        if not (
            0 <= self.magnitude <= MAX_LEVEL
            and 0 <= self.magnitude_std <= MOST_STD
            and 1 <= self.num_ops <= MOST_OPS
        ):
            raise DataError(
                f"{self}: must be magnitude 0 ... {MAX_LEVEL:g}, std 0 ... {MOST_STD:g}, num_ops "
                f"1 ... {MOST_OPS}, as in {EXAMPLE}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read timm's notation: m is the magnitude (10), mstd its std (0), n the operations (2).

        DataError for another policy or option; inc1 must be there, because only the increasing forms are.
        """
        number = r"\d+(?:\.\d+)?"
        options = re.findall(rf"-(m|mstd|n)({number})(?=-|$)", text)
        if not re.fullmatch(rf"rand(-m{number}|-mstd{number}|-n\d+|-inc1)+", text) or "-inc1" not in text:
            raise DataError(
                f"data.augment.auto_augment ({text!r}) must be null or in the form {EXAMPLE!r}, with inc1"
            )
        values = {name: float(value) for name, value in options}
        return cls(
            magnitude=values.get("m", cls.magnitude),
            magnitude_std=values.get("mstd", cls.magnitude_std),
            num_ops=int(values.get("n", cls.num_ops)),
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Swin's recipe by default; a probability, strength or alpha of 0, or None, turns its part off.

    DataError when a value is out of its range.
    """

    auto_augment: str | None = EXAMPLE  # RandAugment, in timm's notation
    color_jitter: float = 0.4  # strength; counts without auto_augment only
    erase_prob: float = 0.25  # probability of random erasing, once a sample, in noise
    mixup_alpha: float = 0.8  # of the beta distribution of mixup's weight
    cutmix_alpha: float = 1.0  # of the beta distribution of cutmix's area
    mix_prob: float = 1.0  # probability that a pair of samples is mixed
    switch_prob: float = 0.5  # probability that a mixed pair is mixed by cutmix, otherwise by mixup
    resample: Literal["bilinear", "bicubic"] = "bicubic"  # in rotation, shear and translation

    def __post_init__(self) -> None:
        for option in ("erase_prob", "mix_prob", "switch_prob"):
            if not 0 <= (value := getattr(self, option)) <= 1:
                raise DataError(f"data.augment.{option} ({value}) must be in 0 ... 1")
        if not 0 <= self.color_jitter <= 100:
            raise DataError(
                f"data.augment.color_jitter ({self.color_jitter}) must be in 0 ... 100; 0 turns it off"
            )
        for option in ("mixup_alpha", "cutmix_alpha"):
            value, (low, high) = getattr(self, option), ALPHAS
            if value != 0 and not low <= value <= high:
                raise DataError(
                    f"data.augment.{option} ({value}) must be in {low} ... {high}; 0 turns it off"
                )
        if self.resample not in ("bilinear", "bicubic"):
            raise DataError(f"data.augment.resample ({self.resample!r}) must be 'bilinear' or 'bicubic'")
        if self.auto_augment is not None:
            RandAugmentOptions.parse(self.auto_augment)

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def group_size(self) -> int:
        """What micro_batch_size must be a multiple of, and the position of every batch's first sample."""
        return GROUP if self.mixes else 1


NOTHING = AugmentConfig(auto_augment=None, color_jitter=0.0, erase_prob=0.0, mix_prob=0.0)
"""No augmentation at all."""
