"""Where a frozen teacher comes from, and what is known of it before its weights are read.

Legend: B images of h x w pixels, H x W tokens and C channels of the last map, K classes.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor, nn

from swin_moe.errors import ModelError
from swin_moe.heads.distill_config import Grid

Wanted = Literal["map", "logits"]  # of a teacher: its last map after its norm, or its classes


class TeacherSourceError(ModelError):
    """A teacher that cannot be used; the message names the file or the option, and the fix."""


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """What a teacher takes and gives."""

    sides: Grid  # h and w of its images, in pixels
    grid: Grid  # H and W
    width: int  # C
    classes: int = 0  # K; 0 without a classifier
    class_names: tuple[str, ...] | None = None  # in the order of its outputs; None where nobody recorded them
    mean: tuple[float, float, float] = field(
        default=(0.0, 0.0, 0.0)
    )  # of its images, whose values are 0 to 1
    std: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))


class TeacherModel(Protocol):
    """A module that is called with images (B, 3, h, w), normalised for it.

    It returns the last map after its last norm (B, H, W, C), or logits (B, K).
    """

    def __call__(self, images: Tensor) -> Tensor:
        """The map or the logits of images."""


class TeacherSource(Protocol):
    """A teacher before its weights are read."""

    @property
    def spec(self) -> TeacherSpec:
        """What it takes and gives, by small files alone."""

    def check(self) -> None:
        """Find out that the weights are there and fit, with as little reading as their format needs.

        Raises:
            ModelError: they are not, or do not.
        """

    def on_meta(self) -> nn.Module:
        """A `TeacherModel` of shapes alone."""

    def load(self) -> nn.Module:
        """A `TeacherModel` with its weights, complete on this rank's host.

        Raises:
            ModelError: they cannot be read or do not fit.
        """
