"""Images to predictions: decoded in threads while the model runs, answered in their order."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor

from data_shards.errors import DataError
from launcher.predict.answerer import Answered, Answerer
from launcher.predict.inputs import ImageInput
from launcher.tasks.answers import Answer


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image, or why it says nothing."""

    name: str  # of the image
    label: int | None = None  # that the shards give it
    answer: Answer | None = None
    features: Tensor | None = None  # (channels of the last map,)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)  # by name, see `Predicting`
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How images are read and run."""

    batch_size: int = 32
    threads: int = 2  # that read and decode


def predictions(
    answerer: Answerer, images: Iterable[ImageInput], options: PredictOptions
) -> Iterator[Prediction]:
    """A prediction for each image, in order. An image that cannot be used has an error, the others go on.

    At most two batches of images are in memory.
    """
    with ThreadPoolExecutor(options.threads, thread_name_prefix="decode") as pool:
        for batch in _batches(pool, answerer, images, options.batch_size):
            yield from _predicted(answerer, batch)


@dataclass(frozen=True)
class _Decoded:
    """An image, and what the model takes of it or the error."""

    image: ImageInput
    example: Any = None
    error: str | None = None


def _batches(
    pool: ThreadPoolExecutor, answerer: Answerer, images: Iterable[ImageInput], size: int
) -> Iterator[list[_Decoded]]:
    """Batches of decoded images; the next one is decoded meanwhile."""
    waiting: deque[Future[_Decoded]] = deque()
    source = iter(images)
    while True:
        for image in islice(source, 2 * size - len(waiting)):
            waiting.append(pool.submit(_decoded, answerer, image))
        if not waiting:
            return
        yield [waiting.popleft().result() for _ in range(min(size, len(waiting)))]


def _decoded(answerer: Answerer, image: ImageInput) -> _Decoded:
    try:
        return _Decoded(image, answerer.example(image.read(), image.position))
    except DataError as error:
        return _Decoded(image, error=str(error))
    except OSError as error:
        return _Decoded(image, error=error.strerror or str(error))


def _predicted(answerer: Answerer, batch: list[_Decoded]) -> Iterator[Prediction]:
    good = [one for one in batch if one.error is None]
    answers: Iterator[Answered] = iter(())
    if good:
        answers = iter(answerer.answer([one.example for one in good], [one.image.position for one in good]))
    for one in batch:
        name, label = one.image.name, one.image.label
        if one.error is not None:
            yield Prediction(name=name, label=label, error=one.error)
            continue
        answered = next(answers)
        if isinstance(answered.said, str):
            yield Prediction(name=name, label=label, error=answered.said)
            continue
        yield Prediction(
            name=name,
            label=label,
            answer=answered.said,
            features=answered.features,
            pictures=answered.pictures,
        )
