"""What a task says of single images, in its own form, for `swin-moe predict`. No torch.

    images -> Predicting.data -> Task.eval_inputs -> Task.predict -> Predicting.answers -> text, JSON, CSV

Legend: B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they import torch, or this module
    from torch import Tensor, nn

    from data_shards.stream.batch import Batch
    from launcher.config.schema import RunConfig
    from launcher.tasks.spec import DataSpec, Task


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What an answer contains."""

    top: int = 5  # of tasks with classes: the most likely classes of an image
    classes: tuple[str, ...] | None = None  # the names of the classes that the model was trained on, if known


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of one image."""

    text: str  # for a person, in one line
    record: Mapping[str, Any]  # for JSON; `file`, `label`, `error` and `pictures` are no names of it
    row: Sequence[Any]  # for CSV: a value of each column


Answers = Callable[[Any, "Batch", AnswerOptions], "Sequence[Answer | str]"]
Pictures = Callable[["Task", "nn.Module", Any, Any], "Mapping[str, Tensor]"]


@dataclass(frozen=True, kw_only=True)
class Predicting:
    """How a task answers to images alone.

    `data` has a transform that reads the member `image` and no other. `answers` gets what `Task.predict`
    returns for a batch, and the batch; for each image it returns an answer, or the reason why there is none.
    `columns` are those of a row. `pictures` gets the task, its model, the inputs and the prediction of one
    image, and returns images by name: (3, height, width) or (height, width), uint8, or floats in 0 to 1.
    """

    data: Callable[[RunConfig], DataSpec]
    columns: Callable[[AnswerOptions], Sequence[str]]
    answers: Answers
    pictures: Pictures | None = None  # without it `--pictures` is refused
    one_by_one: bool = False  # a call of the model gets one image, as where images have their own sizes
