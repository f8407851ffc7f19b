"""From a request to the answers of a model to its images.

    request -> images_of -> prepare (threads) -> Batcher -> run -> finish (threads)

Legend: X is what a model takes of an image, Y what it says of it, R what is sent back.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from launcher.serve.batcher import Batcher, ClosedError, OverloadedError
from launcher.serve.images import BadImageError, prepared
from launcher.serve.options import ServeOptions
from launcher.serve.requests import BODY, images_of
from launcher.serve.schemas import ErrorResponse
from launcher.serve.telemetry import ServerTelemetry

X = TypeVar("X")
Y = TypeVar("Y")
Y_co = TypeVar("Y_co", covariant=True)
R = TypeVar("R")

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "A garbled body."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "Too many bytes, images or pixels."},
    415: {"model": ErrorResponse, "description": "A body of another kind."},
    422: {"model": ErrorResponse, "description": "No image, or a damaged one."},
    429: {"model": ErrorResponse, "description": "The server is busy; try again after Retry-After seconds."},
    500: {"model": ErrorResponse, "description": "The model has no finite answer."},
    503: {"model": ErrorResponse, "description": "The server is shutting down, or the answer took too long."},
}
OPERATION: dict[str, Any] = {"responses": ERRORS, "openapi_extra": {"requestBody": BODY}}  # on images


class Runs(Protocol[X, Y_co]):
    """How images are run."""

    @property
    def one_by_one(self) -> bool:
        """Whether a pass of the model has one image, as where images have their own sizes."""

    def prepare(self, image: bytes) -> X:
        """What the model takes of the file of an image; it is called in several threads.

        Raises:
            DataError: the image cannot be decoded.
        """

    def run(self, examples: Sequence[X]) -> Sequence[Y_co]:
        """What the model says of each image of a pass; it may be called in several threads."""


class Taken(NamedTuple, Generic[X]):
    """An image of a request."""

    number: int  # in the request, from 0
    body: bytes  # its file
    example: X


class Server(Generic[X, Y]):
    """The batcher and the threads of a model.

    Args:
        runs: the model.
        options: of the server.
    """

    def __init__(self, runs: Runs[X, Y], options: ServeOptions) -> None:
        self.runs, self.options = runs, options
        batches = replace(options.batches, max_batch=1) if runs.one_by_one else options.batches
        self.telemetry = ServerTelemetry(batches.max_batch)
        self.batcher: Batcher[X, Y] = Batcher(runs.run, batches, self.telemetry.batches.observe)
        self._threads = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="images")
        self._images = 0  # taken and not answered yet

    async def answer(self, request: Request, finish: Callable[[Taken[X], Y], R]) -> list[R]:
        """What is sent back for each image of a request.

        Args:
            request: whose body has the images.
            finish: makes it of an image and the answer of the model, in a thread.

        Raises:
            HTTPException: see ERRORS.
        """
        try:
            async with asyncio.timeout(self.options.limits.answer_s):
                return await self._answer(request, finish)
        except BadImageError as error:
            raise HTTPException(error.status, str(error)) from error
        except OverloadedError as error:
            raise HTTPException(429, "the server is busy", {"Retry-After": "1"}) from error
        except ClosedError as error:
            raise HTTPException(503, "the server is shutting down") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the connection ended before the body") from error
        except TimeoutError as error:
            raise HTTPException(503, f"no answer in {self.options.limits.answer_s:g} s") from error

    async def _answer(self, request: Request, finish: Callable[[Taken[X], Y], R]) -> list[R]:
        self._take(1)  # before the body is read, so that a busy server reads none
        taken = 1
        try:
            bodies = await images_of(request, self.options.limits)
            self._take(len(bodies) - 1)
            taken = len(bodies)
            images = await self._in_threads(self._taken, list(enumerate(bodies)))
            answers = await self.batcher.submit([image.example for image in images])
            return await self._in_threads(finish, list(zip(images, answers, strict=True)))
        finally:
            self._images -= taken

    def _taken(self, number: int, body: bytes) -> Taken[X]:
        return Taken(number, body, prepared(number, body, self.runs.prepare, self.options.limits))

    async def _in_threads(self, work: Callable[..., R], rows: Sequence[tuple[Any, ...]]) -> list[R]:
        """The results of some work on each row, in order."""
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(self._threads, work, *row) for row in rows)))

    def _take(self, images: int) -> None:
        """Count images that are being answered; OverloadedError where there are too many."""
        if self._images + images > self.options.batches.max_queue:
            raise OverloadedError
        self._images += images

    async def close(self) -> None:
        """Answer what was taken, and end the threads."""
        await self.batcher.close()
        self._threads.shutdown()
