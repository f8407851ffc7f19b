"""The reconstruction error of masked pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import SumMetric
from parallel.ranks.host import send
from swin_moe.heads.simmim import SimMIMOutput


class ReconstructionMetric(SumMetric):
    """Mean absolute error of masked pixels. Every evaluation has the same masks."""

    primary, higher_is_better = "loss", False

    def sums(self, prediction: SimMIMOutput, batch: Batch) -> Tensor:
        """(3,): absolute errors of masked pixels, masked pixels, images."""
        weights = send(batch.weights, self.device).double()
        masked = prediction.mask.sum((1, 2))
        return torch.stack([prediction.error * weights, masked * weights, weights]).double().sum(1)

    def values(self, sums: Tensor) -> dict[str, Any]:
        """loss (mean absolute error of masked pixels), images."""
        error, masked, images = sums.tolist()
        return {"loss": error / masked, "images": int(images)}

    def line(self, values: Mapping[str, Any]) -> str:
        """The loss as text."""
        return f"reconstruction loss {values['loss']:.4f} on {values['images']} images"
