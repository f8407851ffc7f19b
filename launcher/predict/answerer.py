"""What answers to images, whatever it runs.

Legend: C features of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from launcher.tasks.answers import Answer, AnswerOptions


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be said of each image."""

    top: int | None = None  # classes, or objects, of tasks with classes; None is the default
    threshold: float | None = None  # the lowest score of tasks with scores; None is the default
    features: bool = False
    pictures: bool = False
    class_map: bool = False


class Answered(NamedTuple):
    """What was said of one image."""

    said: Answer | str  # or the reason why nothing is
    features: Tensor | None = None  # (C,) fp32
    pictures: Mapping[str, Tensor] = {}  # by name, see `Predicting`
    class_map: Tensor | None = None  # the index of the class of each pixel: (height, width) uint8, on the CPU


class Answerer(Protocol):
    """A model that answers to images."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of the values of `Answer.row`."""

    def example(self, image: bytes, position: int) -> Any:
        """What the model takes of an image; it is called in several threads.

        Args:
            image: the bytes of a file.
            position: of the image in its shards, from which random draws follow; 0 of a file.

        Raises:
            DataError: the image cannot be decoded.
        """

    def answer(self, examples: Sequence[Any], positions: Sequence[int]) -> list[Answered]:
        """What the model says of at least one image, in order; positions as in `example`.

        Raises:
            DataError: images that do not fit the task.
        """


def answer_options(asked: Asked, num_classes: int, classes: tuple[str, ...] | None) -> AnswerOptions:
    """What was asked for, of a model with so many classes, or the defaults."""
    top, objects = (
        default if asked.top is None else asked.top for default in (AnswerOptions.top, AnswerOptions.objects)
    )
    threshold = AnswerOptions.threshold if asked.threshold is None else asked.threshold
    return AnswerOptions(top=min(top, num_classes), objects=objects, threshold=threshold, classes=classes)
