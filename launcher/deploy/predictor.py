"""Whatever classifies images: a trained model, or an artifact that was made of one.

    predictor = open_predictor("runs/a")
    output = predictor.run(torch.stack([predictor.transform(path) for path in paths]))

Legend: B images of h x w pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from launcher.deploy.card import ArtifactError
from launcher.deploy.options import BATCH
from launcher.evaluation.loaded import Image, model_image
from swin_moe.config import ModelConfig
from swin_moe.frozen.model import FrozenOutput
from swin_moe.weights.input_spec import InputSpec

# Takes images (b, channels, h, w) fp32, normalized, on its device; gives the tensors of a FrozenOutput.
Program = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A program that classifies images, and what a caller must know of it.

    `batch` are the fewest and the most images of a call of the program; `run` takes any number.
    """

    source: str  # for messages
    model: ModelConfig
    inputs: InputSpec
    program: Program
    device: torch.device
    batch: tuple[int, int] = BATCH

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, h and w."""
        return (self.model.in_chans, *self.model.image_sides)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the outputs; None where nobody recorded them."""
        return self.inputs.classes

    def transform(self, image: Image) -> Tensor:
        """What an evaluation makes of an image, to the last bit: (3, h, w) float32.

        Args:
            image: the path or the bytes of a file, a PIL image, or an array (H, W, 3) uint8.

        Raises:
            DataError: the image cannot be decoded.
        """
        return model_image(image, self.model.image_sides, self.inputs)

    @torch.no_grad()
    def run(self, images: Tensor) -> FrozenOutput:
        """Classify images (B, channels, h, w) fp32, normalized; B may be 0. The result is on the CPU.

        Raises:
            ArtifactError: the images have another shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ArtifactError(
                f"{self.source} takes images of shape (B, {', '.join(map(str, self.image_shape))}), not "
                f"{tuple(images.shape)}"
            )
        pieces = images.split(self.batch[1]) if len(images) else [images]
        parts = [self._run(piece.to(self.device, torch.float32)) for piece in pieces]
        joined = [torch.cat(tensors)[: len(images)] for tensors in zip(*parts, strict=True)]
        return FrozenOutput.of(joined)

    def _run(self, piece: Tensor) -> list[Tensor]:
        """The outputs for one call, which black images fill where there are too few."""
        missing = max(self.batch[0] - len(piece), 0)
        return [tensor.cpu() for tensor in self.program(F.pad(piece, (0, 0) * 3 + (0, missing)).contiguous())]
