"""The reconstruction error of masked pixels."""

from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from parallel.ranks.host import send
from swin_moe.heads.simmim import SimMIMOutput


class ReconstructionMetric:
    """Mean absolute error of masked pixels. Every evaluation has the same masks.

    Args:
        device: of the model's output.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sums(self, output: SimMIMOutput, batch: Batch) -> Tensor:
        """(3,): absolute errors of masked pixels, masked pixels, images."""
        weights = send(batch.weights, self.device).double()
        masked = output.mask.sum((1, 2))
        return torch.stack([output.error * weights, masked * weights, weights]).double().sum(1)

    def compute(self, sums: list[float]) -> dict[str, Any]:
        """loss (mean absolute error of masked pixels), images."""
        error, masked, images = sums
        return {"loss": error / masked, "images": int(images)}

    def line(self, values: dict[str, Any]) -> str:
        """The loss as text."""
        return f"reconstruction loss {values['loss']:.4f} on {values['images']} images"
