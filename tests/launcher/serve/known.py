"""Models whose answers are known, and images of one colour or of two that they take."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from data_shards.errors import DataError
from data_shards.image.decode import decode_image
from data_shards.image.geometry import EvalTransform
from data_shards.image.pixels import decode_pixels
from launcher.serve.protocol import ExpertMap
from launcher.tasks.answers import NOT_FINITE
from swin_moe.frozen.model import FrozenOutput

SIDE = 16
STEP = 16  # between two colours


class KnownModel:
    """The class of an image is 16 times its red plus its green, both divided by STEP."""

    name, num_classes = "known", 256
    classes: Sequence[str] | None = tuple(f"colour {index}" for index in range(256))
    expert_maps = (ExpertMap("layers.0.blocks.1", 2, 3, 4),)
    examples = (np.full((3, SIDE, SIDE), 32, np.uint8),)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def pixels(self, image: bytes) -> np.ndarray:
        return decode_image(image, EvalTransform(image_size=SIDE, crop_ratio=1.0))

    def run(self, pixels: np.ndarray) -> FrozenOutput:
        self.batches.append(len(pixels))
        colours = pixels.mean((2, 3)).round().astype(np.int64) // STEP
        index = torch.from_numpy(16 * colours[:, 0] + colours[:, 1])
        logits = torch.nn.functional.one_hot(index, 256).float() * 20
        experts = (index[:, None, None] % 4).expand(-1, 6, 1)
        return FrozenOutput(logits, torch.from_numpy(pixels.mean((2, 3))).float(), (experts,))

    def describe(self) -> dict[str, Any]:
        return {"text": "a model whose answers are known"}


class KnownSegmenter:
    """The class of a pixel is its red, divided by STEP; to images of one row it has no answer.

    Of an image of two rows it computes numbers that are not finite.
    """

    name, num_classes = "known", 16
    classes: Sequence[str] | None = tuple(f"red {index}" for index in range(16))
    examples = (np.full((3, 4, 6), 32, np.uint8),)

    def example(self, image: bytes) -> np.ndarray:
        return decode_pixels(image)

    def class_map(self, example: np.ndarray) -> np.ndarray:
        if len(example) == 1:
            raise DataError("one row alone")
        if len(example) == 2:
            raise DataError(NOT_FINITE)
        return example[..., 0] // STEP

    def describe(self) -> dict[str, Any]:
        return {"text": "a model whose answers are known"}


def halves(left: int, right: int, width: int = 8, height: int = 5) -> bytes:
    """The file of an image whose left quarter is of one class of `KnownSegmenter`, the rest of another."""
    pixels = np.full((height, width, 3), 99, np.uint8)
    pixels[..., 0] = STEP * right + STEP // 2
    pixels[:, : width // 4, 0] = STEP * left + STEP // 2
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def image_of(index: int, kind: str = "PNG", side: int = SIDE) -> bytes:
    """The file of an image of class `index`."""
    colour = (STEP * (index // 16) + STEP // 2, STEP * (index % 16) + STEP // 2, 0)
    file = io.BytesIO()
    PIL.Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()
