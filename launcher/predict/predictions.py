"""Images to predictions: decoded in threads while the model runs, answered in their order.

Legend: B images of a batch, C channels of the last map.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from data_shards.errors import DataError
from launcher.deploy.predictor import ClassScore, Predictor, best_classes
from launcher.predict.inputs import ImageInput

NOT_FINITE = "the model gives numbers that are not finite; --precision fp32 may help"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image, or why it says nothing."""

    name: str  # of the image
    label: int | None = None  # that the shards give it
    top: tuple[ClassScore, ...] = ()  # the most likely classes, best first
    features: Tensor | None = None  # (C,)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How images are read and run."""

    top: int = 5  # classes of each image
    batch_size: int = 32
    threads: int = 2  # that read and decode
    features: bool = False  # keep them


def predictions(
    predictor: Predictor, images: Iterable[ImageInput], options: PredictOptions
) -> Iterator[Prediction]:
    """A prediction for each image, in order. An image that cannot be used has an error, the others go on.

    At most two batches of images are in memory.
    """
    with ThreadPoolExecutor(options.threads, thread_name_prefix="decode") as pool:
        for batch in _batches(pool, predictor, images, options.batch_size):
            yield from _predicted(predictor, batch, options)


Decoded = tuple[ImageInput, Tensor | str]  # what the model takes of an image, or the error


def _batches(
    pool: ThreadPoolExecutor, predictor: Predictor, images: Iterable[ImageInput], size: int
) -> Iterator[list[Decoded]]:
    """Batches of decoded images; the next one is decoded meanwhile."""
    waiting: deque[Future[Decoded]] = deque()
    source = iter(images)
    while True:
        for image in islice(source, 2 * size - len(waiting)):
            waiting.append(pool.submit(_decoded, predictor, image))
        if not waiting:
            return
        yield [waiting.popleft().result() for _ in range(min(size, len(waiting)))]


def _decoded(predictor: Predictor, image: ImageInput) -> Decoded:
    try:
        return image, predictor.transform(image.read())
    except DataError as error:
        return image, str(error)
    except OSError as error:
        return image, error.strerror or str(error)


def _predicted(predictor: Predictor, batch: list[Decoded], options: PredictOptions) -> Iterator[Prediction]:
    tensors = [content for _, content in batch if isinstance(content, Tensor)]
    output = predictor.run(torch.stack(tensors)) if tensors else None
    row = 0
    for image, content in batch:
        if isinstance(content, str) or output is None:
            yield Prediction(name=image.name, label=image.label, error=str(content))
            continue
        if not bool(output.logits[row].isfinite().all()):
            yield Prediction(name=image.name, label=image.label, error=NOT_FINITE)
            row += 1
            continue
        yield Prediction(
            name=image.name,
            label=image.label,
            top=best_classes(output.logits[row], options.top, predictor.classes),
            features=output.features[row].clone() if options.features else None,
        )
        row += 1
