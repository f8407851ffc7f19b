"""The options of the toy task."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """The section `toy`."""

    width: int = 8  # of the projections
    momentum: float = 0.9  # of the teacher, and of the centre
    points_weight: float = 0.5  # of the second term of the loss
    eval_views: int = 1  # of a sample in evaluation, whose projections are averaged

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"toy.momentum ({self.momentum}) must lie in [0, 1)")
        if self.eval_views < 1:
            raise ValueError(f"toy.eval_views ({self.eval_views}) must be at least 1")
