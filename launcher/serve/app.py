"""The HTTP interface of a model.

    request -> images_of -> to_pixels (threads) -> Batcher -> answer

Legend: h, w height and width of the model's images; B images.
"""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import PIL.Image
import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect
from torch import Tensor

from launcher.serve.batcher import Batcher, ClosedError, OverloadedError
from launcher.serve.images import BadImageError, to_pixels
from launcher.serve.limits import LimitedBodies
from launcher.serve.options import ServeOptions
from launcher.serve.protocol import Model
from launcher.serve.requests import BODY, images_of
from launcher.serve.schemas import (
    Class,
    Classified,
    ClassifyResponse,
    Embedded,
    EmbedResponse,
    ErrorResponse,
    Experts,
    Health,
)
from launcher.serve.telemetry import Counted, ServerTelemetry
from launcher.tasks.class_scores import best_classes
from swin_moe.frozen.model import FrozenOutput

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


class Server:
    """A model, its batcher and its threads.

    Args:
        model: to serve.
        options: of the server.
    """

    def __init__(self, model: Model, options: ServeOptions) -> None:
        self.model, self.options = model, options
        self.telemetry = ServerTelemetry(options.batches.max_batch)
        self.batcher = Batcher(self._run, options.batches, self.telemetry.batches.observe)
        self._decoders = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        self._images = 0  # taken and not answered yet

    async def answer(self, request: Request) -> list[tuple[np.ndarray, FrozenOutput]]:
        """What the model sees of each image of a request, and its answer.

        Raises:
            HTTPException: see ERRORS.
        """
        try:
            async with asyncio.timeout(self.options.limits.answer_s):
                return await self._answer(request)
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

    async def _answer(self, request: Request) -> list[tuple[np.ndarray, FrozenOutput]]:
        self._take(1)  # before the body is read, so that a busy server reads none
        taken = 1
        try:
            bodies = await images_of(request, self.options.limits)
            self._take(len(bodies) - 1)
            taken = len(bodies)
            loop = asyncio.get_running_loop()
            pixels = await asyncio.gather(
                *(
                    loop.run_in_executor(
                        self._decoders, to_pixels, number, body, self.model, self.options.limits
                    )
                    for number, body in enumerate(bodies)
                )
            )
            return list(zip(pixels, await self.batcher.submit(pixels), strict=True))
        finally:
            self._images -= taken

    def _take(self, images: int) -> None:
        """Count images that are being answered; OverloadedError where there are too many."""
        if self._images + images > self.options.batches.max_queue:
            raise OverloadedError
        self._images += images

    def _run(self, pixels: Sequence[np.ndarray]) -> list[FrozenOutput]:
        """The answers of the model to B images, in a thread of the batcher."""
        output = self.model.run(np.stack(pixels))
        rows = [output.logits, output.features, *output.experts]
        return [FrozenOutput.of([tensor[row] for tensor in rows]) for row in range(len(pixels))]

    async def close(self) -> None:
        """Answer what was taken, and end the threads."""
        await self.batcher.close()
        self._decoders.shutdown()


def create_app(model: Model, options: ServeOptions) -> FastAPI:
    """The application of a model.

    Args:
        model: to serve.
        options: of the server.
    """
    server = Server(model, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await server.close()

    app = FastAPI(
        title="swin-moe serve", summary=model.name, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    app.add_middleware(LimitedBodies, limits=options.limits)
    app.add_middleware(Counted, telemetry=server.telemetry)
    app.add_exception_handler(RequestValidationError, _bad_query)
    _add_routes(app, server)
    _add_page(app, server)
    return app


async def _bad_query(_: Request, error: Exception) -> JSONResponse:
    """422 with one sentence, as all errors have, for a parameter that is out of its range."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, status_code=422)


def _add_routes(app: FastAPI, server: Server) -> None:
    body: dict[str, Any] = {"responses": ERRORS, "openapi_extra": {"requestBody": BODY}}

    @app.post("/v1/classify", response_model_exclude_none=False, **body)
    async def classify(
        request: Request,
        top: Annotated[int, Query(ge=1, le=1000, description="Classes of each answer.")] = 5,
        experts: Annotated[bool, Query(description="Say which experts took which tokens.")] = False,
        view: Annotated[bool, Query(description="Send back what the model sees.")] = False,
    ) -> ClassifyResponse:
        """The most likely classes of each image."""
        results = []
        for pixels, output in await server.answer(request):
            results.append(
                Classified(
                    top=[
                        Class(**asdict(one))
                        for one in best_classes(finite(output.logits), top, server.model.classes)
                    ],
                    experts=expert_maps(server.model, output) if experts else None,
                    view=as_png(pixels) if view else None,
                )
            )
        return ClassifyResponse(results=results)

    @app.post("/v1/embed", **body)
    async def embed(request: Request) -> EmbedResponse:
        """The features of each image."""
        answers = await server.answer(request)
        return EmbedResponse(
            results=[Embedded(features=finite(output.features).tolist()) for _, output in answers]
        )

    @app.get("/healthz")
    async def health() -> Health:
        """Whether the server takes requests."""
        return Health(status="ok")

    @app.get("/v1/model")
    async def describe() -> JSONResponse:
        """What is served."""
        return JSONResponse(server.model.describe())

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """The figures of the server, for Prometheus."""
        server.telemetry.waiting.set(server.batcher.waiting)
        return Response(server.telemetry.text(), media_type=server.telemetry.content_type)


def _add_page(app: FastAPI, server: Server) -> None:
    """The page to try the model, and its examples."""
    html = files("launcher.serve").joinpath("page.html").read_text()
    examples = [base64.b64decode(as_png(pixels)) for pixels in server.model.examples]

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return html

    @app.get("/examples", include_in_schema=False)
    async def count() -> JSONResponse:
        return JSONResponse({"examples": len(examples)})

    @app.get("/examples/{number}", include_in_schema=False)
    async def example(number: int) -> Response:
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there are {len(examples)} examples")
        return Response(examples[number], media_type="image/png")


def expert_maps(model: Model, output: FrozenOutput) -> list[Experts]:
    """Which experts took the tokens of an image, of each MoE layer."""
    return [
        Experts(
            layer=layer.name,
            num_experts=layer.num_experts,
            height=layer.height,
            width=layer.width,
            experts=index.tolist(),
        )
        for layer, index in zip(model.expert_maps, output.experts, strict=True)
    ]


def finite(values: Tensor) -> Tensor:
    """The values; HTTPException 500 where one is not finite, which JSON cannot say."""
    if not bool(torch.isfinite(values).all()):
        raise HTTPException(500, "the model gives numbers that are not finite for this image")
    return values


def as_png(pixels: np.ndarray) -> str:
    """An image (3, h, w) uint8 as a PNG in base64."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
