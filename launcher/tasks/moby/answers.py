"""The features of each image in files. Legend: C channels."""

from collections.abc import Sequence

from data_shards.stream.batch import Batch
from launcher.tasks.answers import Answer, AnswerOptions
from launcher.tasks.moby.metric import MoBYPrediction


def columns(options: AnswerOptions) -> list[str]:
    """How many features there are, and their length."""
    return ["channels", "norm"]


def answers(prediction: MoBYPrediction, batch: Batch, options: AnswerOptions) -> Sequence[Answer | str]:
    """The pooled features of each image, C numbers; `--features` writes them into a file."""
    return [_answer(row) for row in prediction.features.float().tolist()]


def _answer(features: list[float]) -> Answer | str:
    norm = sum(value * value for value in features) ** 0.5
    if norm - norm != 0:
        return "the features are not finite; --precision fp32 may help"
    return Answer(
        text=f"{len(features)} features of norm {norm:.4f}",
        record={"features": features},
        row=[len(features), norm],
    )
