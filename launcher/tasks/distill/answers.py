"""How well the student predicts the teacher's map of each image."""

from collections.abc import Sequence

from data_shards.stream.batch import Batch
from launcher.tasks.answers import Answer, AnswerOptions
from swin_moe.heads.distill import DistillOutput


def columns(options: AnswerOptions) -> list[str]:
    """The loss of an image, and the cosine of prediction and target, its mean over the tokens."""
    return ["loss", "cosine"]


def answers(prediction: DistillOutput, batch: Batch, options: AnswerOptions) -> Sequence[Answer | str]:
    """The loss and the cosine of each image."""
    pairs = zip(prediction.error.tolist(), prediction.cosine.tolist(), strict=True)
    return [_answer(loss, cosine) for loss, cosine in pairs]


def _answer(loss: float, cosine: float) -> Answer | str:
    if loss - loss != 0:
        return "the prediction of the teacher's map is not finite; --precision fp32 may help"
    return Answer(
        text=f"distillation loss {loss:.4f}, cosine {cosine:.4f}",
        record={"loss": loss, "cosine": cosine},
        row=[loss, cosine],
    )
