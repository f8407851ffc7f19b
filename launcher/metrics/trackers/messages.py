"""What a rank and the process of a tracker send each other, pickled. Without torch."""

from pathlib import Path
from typing import Any, NamedTuple

from launcher.metrics.trackers.base import TrackedRun


class Begin(NamedTuple):
    """The first message: what to import, and what it tracks."""

    path: str  # MODULE:CLASS
    run: TrackedRun
    state_file: Path  # where what `start` returns is kept for the next session


class Call(NamedTuple):
    """A further message: a method of the tracker. `end` is the last."""

    method: str
    args: tuple[Any, ...]


class Started(NamedTuple):
    """The answer after `start`."""

    where: str


class Failed(NamedTuple):
    """The answer to an exception; none follows."""

    reason: str


class Ended(NamedTuple):
    """The answer after `end`; none follows."""
