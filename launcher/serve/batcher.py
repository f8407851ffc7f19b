"""Dynamic batching: images of many requests run together, each answer goes back to its own request.

    submit() -> queue -> a worker takes up to `max_batch` images, within `max_wait_s` -> model -> futures

A worker is a task that runs the model in a thread of its own, so that the event loop stays free.
Legend: B images of a batch.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


class OverloadedError(Exception):
    """The queue is full: the client should try again later."""


class ClosedError(Exception):
    """The batcher does not take requests any more."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How requests become batches."""

    max_batch: int = 32  # images of one pass
    max_wait_s: float = 0.005  # for further images, after the first one
    workers: int = 1  # batches that are computed at the same time
    max_queue: int = 256  # images that wait; beyond that requests are refused


@dataclass(frozen=True)
class _Waiting(Generic[X, Y]):
    """An input and who waits for its answer."""

    value: X
    answer: "asyncio.Future[Y]"


class Batcher(Generic[X, Y]):
    """Runs single inputs in batches.

    All methods are for the thread of the event loop; `run` is called in other threads.

    Args:
        run: answers to B inputs, in their order.
        options: sizes and times.
        observe: is told the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[X]], Sequence[Y]],
        options: BatchOptions,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.options = options
        self._run, self._observe = run, observe
        self._queue: asyncio.Queue[_Waiting[X, Y]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(options.workers, thread_name_prefix="model")
        self._workers: list[asyncio.Task[None]] = []
        self._unanswered, self._closed = 0, False

    @property
    def waiting(self) -> int:
        """Inputs that are in the queue."""
        return self._queue.qsize()

    def start(self) -> None:
        """Start the workers in the running event loop."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.options.workers)]

    async def submit(self, values: Sequence[X]) -> list[Y]:
        """The answers to some inputs of one request, in their order.

        Raises:
            OverloadedError: the queue has no place for all of them; none was taken.
            ClosedError: the batcher was closed.
            Exception: what the model raised for the batch of one of them.
        """
        if self._closed:
            raise ClosedError
        if self.waiting + len(values) > self.options.max_queue:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        waiting: list[_Waiting[X, Y]] = [_Waiting(value, loop.create_future()) for value in values]
        for one in waiting:
            self._queue.put_nowait(one)
        return list(await asyncio.gather(*(one.answer for one in waiting)))

    async def close(self) -> None:
        """Answer everything that was taken, then end the workers."""
        self._closed = True
        await self._queue.join()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            wanted = [one for one in batch if not one.answer.cancelled()]  # their clients are still there
            try:
                if wanted:
                    self._observe(len(wanted))
                    values = [one.value for one in wanted]
                    answers = await loop.run_in_executor(self._threads, self._run, values)
                    for one, answer in zip(wanted, answers, strict=True):
                        if not one.answer.done():
                            one.answer.set_result(answer)
            except Exception as error:
                for one in wanted:
                    if not one.answer.done():
                        one.answer.set_exception(error)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _next_batch(self) -> list[_Waiting[X, Y]]:
        """The inputs of the next pass: those that are there, and those that come within `max_wait_s`."""
        batch = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.options.max_wait_s):
                while len(batch) < self.options.max_batch:
                    batch.append(await self._queue.get())
        return batch
