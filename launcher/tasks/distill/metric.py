"""How well a student predicts its teacher's maps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import SumMetric
from parallel.ranks.host import send
from swin_moe.heads.distill import DistillOutput


class DistillMetric(SumMetric):
    """The mean loss, the cosine of prediction and target, and the spread of the targets."""

    primary, higher_is_better = "loss", False

    def sums(self, prediction: DistillOutput, batch: Batch) -> Tensor:
        """(4,): losses, cosines and spreads of the images, images."""
        weights = send(batch.weights, self.device).double()
        rows = [prediction.error, prediction.cosine, prediction.spread, torch.ones_like(weights)]
        return torch.stack([row.double() * weights for row in rows]).sum(1)

    def values(self, sums: Tensor) -> dict[str, Any]:
        """loss, cosine, target_spread, images."""
        loss, cosine, spread, images = sums.tolist()
        return {
            "loss": loss / images,
            "cosine": cosine / images,
            "target_spread": spread / images,
            "images": int(images),
        }

    def line(self, values: Mapping[str, Any]) -> str:
        """The loss and the cosine as text."""
        found = f"distillation loss {values['loss']:.4f}, cosine {values['cosine']:.4f}"
        return f"{found} on {values['images']} images"
