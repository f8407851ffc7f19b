"""Requests to a classifier: /v1/classify and /v1/embed.

Legend: h, w height and width of the model's images; B images.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query, Request
from torch import Tensor

from launcher.serve.answering import OPERATION, Server, Taken
from launcher.serve.images import as_png
from launcher.serve.protocol import ClassifierModel
from launcher.serve.schemas import Class, Classified, ClassifyResponse, Embedded, EmbedResponse, Experts
from launcher.tasks.class_scores import best_classes
from swin_moe.frozen.model import FrozenOutput


class ClassifyInterface:
    """What is asked of a classifier.

    Args:
        model: the classifier.
    """

    paths = ("/v1/classify", "/v1/embed")
    one_by_one = False

    def __init__(self, model: ClassifierModel) -> None:
        self.model = model

    def prepare(self, image: bytes) -> np.ndarray:
        """What the model sees of the file of an image: (3, h, w) uint8."""
        return self.model.pixels(image)

    def run(self, examples: Sequence[np.ndarray]) -> list[FrozenOutput]:
        """The answers of the model to B images."""
        output = self.model.run(np.stack(examples))
        rows = [output.logits, output.features, *output.experts]
        return [FrozenOutput.of([tensor[row] for tensor in rows]) for row in range(len(examples))]

    def add_routes(self, app: FastAPI, server: Server[np.ndarray, FrozenOutput]) -> None:
        """Add the operations of a classifier."""

        @app.post("/v1/classify", response_model_exclude_none=False, **OPERATION)
        async def classify(
            request: Request,
            top: Annotated[int, Query(ge=1, le=1000, description="Classes of each answer.")] = 5,
            experts: Annotated[bool, Query(description="Say which experts took which tokens.")] = False,
            view: Annotated[bool, Query(description="Send back what the model sees.")] = False,
        ) -> ClassifyResponse:
            """The most likely classes of each image."""

            def finish(image: Taken[np.ndarray], output: FrozenOutput) -> Classified:
                best = best_classes(finite(output.logits), top, self.model.classes)
                return Classified(
                    top=[Class(**asdict(one)) for one in best],
                    experts=expert_maps(self.model, output) if experts else None,
                    view=as_png(image.example) if view else None,
                )

            return ClassifyResponse(results=await server.answer(request, finish))

        @app.post("/v1/embed", **OPERATION)
        async def embed(request: Request) -> EmbedResponse:
            """The features of each image."""

            def finish(_: Taken[np.ndarray], output: FrozenOutput) -> Embedded:
                return Embedded(features=finite(output.features).tolist())

            return EmbedResponse(results=await server.answer(request, finish))


def expert_maps(model: ClassifierModel, output: FrozenOutput) -> list[Experts]:
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
