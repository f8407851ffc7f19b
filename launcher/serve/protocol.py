"""What the server needs of a model.

Legend: B images of h x w pixels, L = H * W tokens and k choices of an MoE layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from swin_moe.frozen.model import FrozenOutput


class ExpertMap(NamedTuple):
    """An MoE layer, whose tokens form a map."""

    name: str  # of the layer
    height: int  # H
    width: int  # W
    num_experts: int


class Model(Protocol):
    """A model that is served."""

    @property
    def name(self) -> str:
        """What it is, for a person."""

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of its outputs, if they are known."""

    @property
    def num_classes(self) -> int:
        """The number of its outputs."""

    @property
    def examples(self) -> Sequence[np.ndarray]:
        """Images to try: (3, h, w) uint8 each."""

    def describe(self) -> dict[str, Any]:
        """What is known of it: JSON-able."""


class ClassifierModel(Model, Protocol):
    """A class for each image: an artifact, or a model that was loaded from a run."""

    @property
    def expert_maps(self) -> Sequence[ExpertMap]:
        """Its MoE layers in order."""

    def pixels(self, image: bytes) -> np.ndarray:
        """What it sees of the file of an image: (3, h, w) uint8.

        Raises:
            DataError: the image cannot be decoded.
        """

    def run(self, pixels: np.ndarray) -> FrozenOutput:
        """Its answer to images (B, 3, h, w) uint8, for any B; it may be called in several threads."""


class SegmentationModel(Model, Protocol):
    """A class for each pixel of an image, which has its own size."""

    def example(self, image: bytes) -> Any:
        """What it takes of the file of an image; it is called in several threads.

        Raises:
            DataError: the image cannot be decoded.
        """

    def class_map(self, example: Any) -> np.ndarray:
        """The index of the class of each pixel: (h, w) uint8; it may be called in several threads.

        Raises:
            DataError: the model has no answer to this image.
        """
