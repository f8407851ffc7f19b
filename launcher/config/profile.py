"""ProfileConfig: the steps of a run that torch.profiler records."""

import re
from dataclasses import dataclass

from parallel.ranges import LARGEST, check_ranges

MOST_STEPS = 100  # a trace has 10,000 events a step and more, and is held in memory
_RANGE = re.compile(r"([0-9]{1,10})(?:\.\.([0-9]{1,10}))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are recorded, and on which ranks. The result of a run is the same with and without."""

    steps: str  # the first and the last one, both recorded, such as 10..12; 1 is the first step of the run
    ranks: tuple[int, ...] = (0,)  # that record, each into files of its own

    def __post_init__(self) -> None:
        first, last = step_range(self.steps)
        if not 1 <= first <= last <= LARGEST:
            raise ValueError(
                f"train.profile.steps ({self.steps}) must be FIRST..LAST with 1 <= FIRST <= LAST"
            )
        if last - first >= MOST_STEPS:
            raise ValueError(
                f"train.profile.steps ({self.steps}) are {last - first + 1} steps; at most {MOST_STEPS} are "
                "recorded, because a trace is held in memory"
            )
        check_ranges("train.profile.", self, ranks=(0, 2**20))
        if not self.ranks or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(
                f"train.profile.ranks ({list(self.ranks)}) must name at least one rank, each once"
            )

    @property
    def first(self) -> int:
        """The first step that is recorded."""
        return step_range(self.steps)[0]

    @property
    def last(self) -> int:
        """The last step that is recorded."""
        return step_range(self.steps)[1]


def step_range(text: str) -> tuple[int, int]:
    """The two steps of "10..12"; those of "10" are equal.

    Raises:
        ValueError: with the accepted form and the text.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"train.profile.steps ({text!r}) must read FIRST..LAST, such as 10..12")
    return int(match[1]), int(match[2] or match[1])
