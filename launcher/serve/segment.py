"""Requests to a model with a class for each pixel: /v1/segment.

Legend: H, W height and width of an image at its own size.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query, Request

from data_shards.errors import DataError
from data_shards.image.decode import decode_image
from launcher.serve.answering import OPERATION, Server, Taken
from launcher.serve.images import AtMost, BadImageError, as_png
from launcher.serve.protocol import SegmentationModel
from launcher.serve.schemas import PixelClass, Segmented, SegmentResponse
from launcher.tasks.answers import NOT_FINITE
from launcher.tasks.class_colours import web_colour
from launcher.tasks.class_scores import class_shares

LONGEST = 1024  # pixels of a side of an image that is sent back


class SegmentInterface:
    """What is asked of a model with a class for each pixel.

    Args:
        model: of segmentation.
    """

    paths = ("/v1/segment",)
    one_by_one = True

    def __init__(self, model: SegmentationModel) -> None:
        self.model = model

    def prepare(self, image: bytes) -> Any:
        """What the model takes of the file of an image."""
        return self.model.example(image)

    def run(self, examples: Sequence[Any]) -> list[np.ndarray | DataError]:
        """The class of each pixel of each image (H, W) uint8, or why the model has no answer to it."""
        return [self._class_map(example) for example in examples]

    def _class_map(self, example: Any) -> np.ndarray | DataError:
        try:
            return self.model.class_map(example)
        except DataError as error:
            return error

    def add_routes(self, app: FastAPI, server: Server[Any, np.ndarray | DataError]) -> None:
        """Add the operation of segmentation."""

        @app.post("/v1/segment", **OPERATION)
        async def segment(
            request: Request,
            view: Annotated[bool, Query(description="Send back the image too.")] = False,
        ) -> SegmentResponse:
            """The class of each pixel of each image."""

            def finish(image: Taken[Any], found: np.ndarray | DataError) -> Segmented:
                if isinstance(found, DataError):
                    if str(found) == NOT_FINITE:  # the model is at fault, not the image
                        raise HTTPException(500, NOT_FINITE) from found
                    raise BadImageError(image.number, str(found)) from found
                return Segmented(
                    height=found.shape[0],
                    width=found.shape[1],
                    classes=[
                        PixelClass(**asdict(one), colour=web_colour(one.index))
                        for one in class_shares(torch.from_numpy(found), self.model.classes)
                    ],
                    map=as_png(found),
                    view=as_png(decode_image(image.body, AtMost(LONGEST))) if view else None,
                )

            return SegmentResponse(results=await server.answer(request, finish))
