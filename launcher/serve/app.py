"""The HTTP interface of a model: the operations of its kind, what every server has, and the page."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from launcher.serve.answering import Server
from launcher.serve.classify import ClassifyInterface
from launcher.serve.images import as_png
from launcher.serve.limits import LimitedBodies
from launcher.serve.options import ServeOptions
from launcher.serve.protocol import Model
from launcher.serve.schemas import Health
from launcher.serve.segment import SegmentInterface
from launcher.serve.telemetry import Counted

Interface = ClassifyInterface | SegmentInterface


def create_app(interface: Interface, options: ServeOptions) -> FastAPI:
    """The application of a model.

    Args:
        interface: of the model to serve.
        options: of the server.
    """
    server: Server[Any, Any] = Server(interface, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await server.close()

    model = interface.model
    app = FastAPI(
        title="swin-moe serve", summary=model.name, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(LimitedBodies, limits=options.limits)
    app.add_middleware(Counted, telemetry=server.telemetry)
    app.add_exception_handler(RequestValidationError, _bad_query)
    interface.add_routes(app, server)
    _add_missing(app, interface)
    _add_general(app, interface, server)
    _add_page(app, model)
    return app


async def _bad_query(_: Request, error: Exception) -> JSONResponse:
    """422 with one sentence, as all errors have, for a parameter that is out of its range."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, status_code=422)


def _add_missing(app: FastAPI, interface: Interface) -> None:
    """Say at the paths of other models what this one answers."""
    here = " and ".join(f"POST {path}" for path in interface.paths)

    async def missing(request: Request) -> Response:
        raise HTTPException(404, f"{request.url.path} is for other models; this one answers {here}")

    for path in {*ClassifyInterface.paths, *SegmentInterface.paths} - {*interface.paths}:
        app.add_api_route(path, missing, methods=["GET", "POST"], include_in_schema=False)


def _add_general(app: FastAPI, interface: Interface, server: Server[Any, Any]) -> None:
    """What the server says of itself."""

    @app.get("/healthz")
    async def health() -> Health:
        """Whether the server takes requests."""
        return Health(status="ok")

    @app.get("/v1/model")
    async def describe() -> JSONResponse:
        """What is served."""
        return JSONResponse({**interface.model.describe(), "paths": interface.paths})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """The figures of the server, for Prometheus."""
        server.telemetry.waiting.set(server.batcher.waiting)
        return Response(server.telemetry.text(), media_type=server.telemetry.content_type)


def _add_page(app: FastAPI, model: Model) -> None:
    """The page to try the model, and its examples."""
    html = files("launcher.serve").joinpath("page.html").read_text()
    examples = [base64.b64decode(as_png(pixels)) for pixels in model.examples]

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
