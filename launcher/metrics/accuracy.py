"""Top-1 and top-5 accuracy, and cross-entropy: the metric of tasks whose prediction has `logits` of classes.

Legend: B images, K classes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import SumMetric
from parallel.ranks.host import send
from swin_moe.backbone.model import ModelOutput
from swin_moe.heads.classification import evaluation_sums


class ClassificationMetric(SumMetric):
    """Accuracy and cross-entropy over the images of a split."""

    primary, higher_is_better = "top1", True

    def scores(self, output: ModelOutput) -> Tensor:
        """The scores of the classes: (B, K) logits."""
        return output.logits

    def sums(self, prediction: ModelOutput, batch: Batch) -> Tensor:
        """(4,): weighted cross-entropy, top-1 hits, top-5 hits, images."""
        labels, weights = send(batch["label"], self.device), send(batch.weights, self.device)
        return evaluation_sums(self.scores(prediction), labels, weights)

    def values(self, sums: Tensor) -> dict[str, Any]:
        """top1 and top5 (fractions), loss (cross-entropy without label smoothing), images."""
        loss, hits, hits5, images = sums.tolist()
        return {
            "top1": hits / images,
            "top5": hits5 / images,
            "loss": loss / images,
            "images": int(images),
        }

    def line(self, values: Mapping[str, Any]) -> str:
        """Top-1, top-5 and loss as text."""
        hits = f"top-1 {values['top1']:.2%}, top-5 {values['top5']:.2%}"
        return f"{hits}, loss {values['loss']:.4f} on {values['images']} images"
