"""What `bench predict` measures: the program of a classifier, or the model of any task as `predict` runs it.

Legend: B images of a call, h and w of a model's images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.deploy.artifact import Artifact
from launcher.deploy.options import DeviceType
from launcher.deploy.predictor import Predictor
from launcher.predict.answerers import ClassifierAnswerer, open_answerer
from parallel.zero.options import Precision


@dataclass(frozen=True, kw_only=True)
class Measurable:
    """A model in two steps that are timed apart."""

    name: str
    program: str  # what runs, in which precision and where
    decode: Callable[[Sequence[bytes]], Any]  # from the files of B images to what the model takes; DataError
    run: Callable[[Any], Any]  # from there to the answers, on the CPU


def open_measurable(
    source: str | Path,
    config: str | Path | None = None,
    *,
    ema: bool = False,
    precision: Precision | None = None,
    device: DeviceType | None = None,
) -> Measurable:
    """A model of any task that has predictions; arguments and errors as of `open_answerer`."""
    answerer = open_answerer(source, config, ema=ema, precision=precision, device=device)
    if isinstance(answerer, ClassifierAnswerer):
        return of_predictor(answerer.predictor, precision or "fp32")
    return Measurable(
        name=str(source),
        program=f"eager {precision or 'fp32'} {device or 'cpu'}",
        decode=lambda bodies: [answerer.example(body, position) for position, body in enumerate(bodies)],
        run=lambda examples: answerer.answer(examples, range(len(examples))),
    )


def of_predictor(predictor: Predictor, precision: Precision) -> Measurable:
    """A classifier: from files to a tensor (B, 3, h, w), and from there to the logits.

    Args:
        predictor: the classifier.
        precision: of one that is no artifact.
    """

    def decode(bodies: Sequence[bytes]) -> Tensor:
        return torch.stack([predictor.transform(body) for body in bodies])

    if isinstance(predictor, Artifact):
        card = predictor.card
        program = f"{card.target} {card.precision} {card.device}"
    else:
        program = f"eager {precision} {predictor.device.type}"
    return Measurable(name=predictor.source, program=program, decode=decode, run=predictor.run)
