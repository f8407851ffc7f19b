"""What a tracker is: it receives the values of a run, on rank 0 alone. Without torch.

Legend: an image is (3, H, W), uint8, RGB.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from launcher.config.tracking import TrackingConfig

Status = Literal["finished", "stopped", "failed"]  # stopped: on request, and to be resumed
Image = NDArray[np.uint8]
Scalar = bool | int | float | str


class TrackerError(RuntimeError):
    """A tracker cannot receive values; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A session of a run, as a tracker sees it."""

    directory: Path  # absolute
    name: str
    group: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    options: Mapping[str, Scalar] = field(default_factory=dict)  # every option of the run by its dotted name
    config: str = ""  # the same in YAML
    start_step: int = 0  # this session takes the steps after it
    # the last step that an earlier session reached: steps after start_step up to it, which a kill undid, are
    # taken again, and their values come a second time
    reached_step: int = 0
    state: Mapping[str, str] = field(default_factory=dict)  # what `start` of the earlier session returned


@runtime_checkable
class Tracker(Protocol):
    """Receives what one run records. Its methods are called one after the other.

    A method may raise or block: training goes on, and after an exception the tracker gets no more calls.
    """

    @classmethod
    def problems(cls, tracking: TrackingConfig) -> Sequence[str]:
        """What is wrong with its options, a line each, each with the option; called before anything runs."""
        return ()

    @abstractmethod
    def start(self, run: TrackedRun) -> Mapping[str, str]:
        """Begin, or go on with what an earlier session of the run began.

        Args:
            run: its identity, its options and the state of the earlier session, which is empty for a new run.

        Returns:
            What the next session needs to go on, such as an id; the run directory keeps it.
        """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by names such as "train/loss"; a step may come several times, with other names."""

    def image(self, name: str, step: int, image: Image) -> None:
        """Record an image (3, H, W)."""
        return  # an empty body of a protocol would make every tracker write it

    def text(self, name: str, step: int, text: str) -> None:
        """Record a text, such as the configuration."""
        return  # an empty body of a protocol would make every tracker write it

    def flush(self) -> None:
        """Pass on what is held back; called when no further values wait."""
        return  # an empty body of a protocol would make every tracker write it

    @abstractmethod
    def end(self, status: Status) -> None:
        """Pass on everything, and record how the session ended."""

    def where(self) -> str:
        """Where the values are, or how to see them, in one line; called after `start`."""
        return ""


def as_image(pixels: Any) -> Image:
    """An image (3, H, W) as uint8, of an array or a tensor of floats in 0 ... 1 or of uint8."""
    array = np.asarray(pixels)
    if array.dtype == np.uint8:
        return array
    return (array * 255.0).clip(0, 255).astype(np.uint8)
