"""The batches of training, the next one's inputs made before a step has ended.

On a GPU the host waits inside of the optimizer's step. What is enqueued between the backward pass and the
step, such as the augmentation of the next batch, costs no time of its own. Inputs are functions of a sample's
position in the stream, so that it does not matter when they are made.
"""

from collections.abc import Callable, Iterator
from typing import Any

from data_shards.errors import DataError
from data_shards.stream.base import TrainingStream
from data_shards.stream.batch import Batch

Held = tuple[Batch, Any] | DataError


class InputPrefetcher(Iterator[Batch]):
    """The batches of a stream, of which one may be held back with its inputs.

    Args:
        stream: in training.
        prepare: what makes the inputs of a batch, on its device.
    """

    def __init__(self, stream: TrainingStream, prepare: Callable[[Batch], Any]) -> None:
        self._stream, self._prepare, self._batches = stream, prepare, iter(stream)
        self._held: Held | None = None
        self._handed: tuple[Batch, Any] | None = None  # a batch that was held, and its inputs
        self._state: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def prefetch(self) -> None:
        """Take the next batch, which belongs to the next step, and make its inputs.

        A DataError is kept until the batch is requested, so that the step under way is not lost.
        """
        self._state, self._counts = self._stream.state_dict(), self._stream.counts()
        try:
            batch = next(self._batches)
            self._held = batch, self._prepare(batch)
        except DataError as error:
            self._held = error

    def __next__(self) -> Batch:
        held, self._held, self._handed = self._held, None, None
        if isinstance(held, DataError):
            raise held
        if held is None:
            return next(self._batches)
        self._handed = held
        return held[0]

    def inputs(self, batch: Batch) -> Any:
        """The inputs of a batch, made now if they were not made before."""
        if self._handed is not None and self._handed[0] is batch:
            return self._handed[1]
        return self._prepare(batch)

    def state_dict(self) -> dict[str, Any]:
        """The stream's, without the batch that is held."""
        return self._state if self._held is not None else self._stream.state_dict()

    def counts(self) -> dict[str, int]:
        """The stream's, without the batch that is held."""
        return self._counts if self._held is not None else self._stream.counts()
