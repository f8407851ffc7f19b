"""How well the masked pixels of each image are reconstructed.

The masks are drawn by the position of an image in its shards, as in an evaluation. All images in files have
the masks of position 0. Legend: B images of H x W pixels.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.tasks.answers import Answer, AnswerOptions
from launcher.tasks.spec import Task
from swin_moe.heads.simmim import SimMIMOutput


def columns(options: AnswerOptions) -> list[str]:
    """The loss of an image, and the number of its pixels that it is a mean over."""
    return ["loss", "masked_pixels"]


def answers(prediction: SimMIMOutput, batch: Batch, options: AnswerOptions) -> Sequence[Answer | str]:
    """The mean absolute error of the masked pixels of each image."""
    masked = prediction.mask.sum((1, 2))
    pairs = zip(prediction.error.tolist(), masked.tolist(), strict=True)
    return [_answer(error / max(pixels, 1), pixels) for error, pixels in pairs]


def _answer(loss: float, pixels: int) -> Answer | str:
    if loss - loss != 0:
        return "the reconstruction is not finite; --precision fp32 may help"
    return Answer(
        text=f"reconstruction loss {loss:.4f} on {pixels} masked pixels",
        record={"loss": loss, "masked_pixels": pixels},
        row=[loss, pixels],
    )


def pictures(
    task: Task, model: nn.Module, inputs: Tensor, prediction: SimMIMOutput, options: AnswerOptions
) -> Mapping[str, Tensor]:
    """One below the other: the image, its visible patches, the image with masked pixels filled in."""
    picture = task.visualize(model, inputs, prediction)
    assert picture is not None
    return {"reconstruction": picture}
