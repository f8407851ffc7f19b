"""What a task says of single images, in its own form, for `swin-moe predict`. No torch.

images -> Predicting.data -> Task.eval_inputs -> Task.predict -> Predicting.answers -> text, JSON, CSV
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# of a prediction with NaN or infinity, whose best class or score would be an arbitrary one
NOT_FINITE = "the model gives numbers that are not finite; --precision fp32 may help"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What an answer contains."""

    top: int = 5  # of tasks with classes: the most likely classes of an image
    objects: int = 5  # of tasks that find objects: how many of an image a text and a row show
    threshold: float = 0.5  # of tasks that find objects: the lowest score of those in an answer
    classes: tuple[str, ...] | None = None  # the names of the classes that the model was trained on, if known


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of one image."""

    text: str  # for a person, in one line
    record: Mapping[str, Any]  # for JSON; `file`, `label`, `error` and `pictures` are no names of it
    row: Sequence[Any]  # for CSV: a value of each column
