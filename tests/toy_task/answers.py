"""What the toy task says of an image: where it expects the points, and the projection."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.tasks.answers import Answer, AnswerOptions


def columns(options: AnswerOptions) -> Sequence[str]:
    """The centroid."""
    return ["x", "y"]


def answers(prediction: Any, batch: Batch, options: AnswerOptions) -> Sequence[Answer | str]:
    """A centroid (2,) and a projection (D,) of each image."""
    pairs = zip(prediction.centroid.tolist(), prediction.projection.tolist(), strict=True)
    return [
        Answer(text=f"points around ({x:.2f}, {y:.2f})", record={"projection": projection}, row=[x, y])
        for (x, y), projection in pairs
    ]


def pictures(task: Any, model: Any, inputs: Tensor, prediction: Any, options: Any) -> Mapping[str, Tensor]:
    """A map with one bright pixel, whose column is the number of the largest value of the projection."""
    picture = torch.zeros(4, prediction.projection.shape[1], dtype=torch.uint8)
    picture[2, prediction.projection[0].argmax()] = 255
    return {"largest": picture}
