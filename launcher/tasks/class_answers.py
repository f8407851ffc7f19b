"""What tasks with a class for each sample answer: the most likely classes.

Legend: B images, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.tasks.answers import NOT_FINITE, Answer, AnswerOptions
from launcher.tasks.class_scores import best_classes


def columns(options: AnswerOptions) -> list[str]:
    """Index, name and probability of each class, numbered from 1."""
    return [
        f"{part}{rank}" for rank in range(1, options.top + 1) for part in ("index", "name", "probability")
    ]


def answers(prediction: Any, batch: Batch, options: AnswerOptions) -> Sequence[Answer | str]:
    """The best classes by `prediction.logits` (B, K)."""
    return [_answer(logits, options) for logits in prediction.logits]


def _answer(logits: Tensor, options: AnswerOptions) -> Answer | str:
    if not bool(logits.isfinite().all()):
        return NOT_FINITE
    best = best_classes(logits, options.top, options.classes)
    return Answer(
        text=", ".join(f"{one.name or one.index} {one.probability:.1%}" for one in best),
        record={"top": [asdict(one) for one in best]},
        row=[value for one in best for value in (one.index, one.name or "", one.probability)],
    )
