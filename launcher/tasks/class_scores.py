"""The most likely classes of an image, and those with most of its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassScore:
    """A class and how likely it is."""

    index: int  # of the model's outputs
    name: str | None  # if it is known
    probability: float  # of the softmax over all classes


def best_classes(logits: Tensor, top: int, names: Sequence[str] | None) -> tuple[ClassScore, ...]:
    """The most likely classes of logits (classes,), best first; equal ones in their order."""
    probabilities = logits.double().softmax(0)
    order = probabilities.argsort(descending=True, stable=True)[:top].tolist()
    return tuple(
        ClassScore(index, names[index] if names else None, float(probabilities[index])) for index in order
    )


@dataclass(frozen=True)
class ClassShare:
    """A class and how much of an image it covers."""

    index: int  # of the model's outputs
    name: str | None  # if it is known
    share: float  # of the pixels


def class_shares(labels: Tensor, names: Sequence[str] | None) -> list[ClassShare]:
    """The classes of a map (height, width) uint8, that with most pixels first; of equal ones the first."""
    counts = labels.flatten().bincount()
    order = counts.argsort(descending=True, stable=True).tolist()
    return [
        ClassShare(index, names[index] if names else None, int(counts[index]) / labels.numel())
        for index in order
        if counts[index]
    ]
