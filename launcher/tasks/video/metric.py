"""Accuracy over the videos of a split, and over their single views, told apart.

Legend: B videos, V views of each, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.accuracy import ClassificationMetric
from launcher.tasks.video.prediction import VideoPrediction
from parallel.ranks.host import send
from swin_moe.heads.classification import evaluation_sums


class VideoMetric(ClassificationMetric):
    """The accuracy of videos by the mean probabilities of their views, and that of each view by itself.

    Args:
        device: of the predictions.
        num_classes: K.
        clips: of a video.
        crops: of a clip.
    """

    def __init__(self, device: torch.device, num_classes: int, clips: int, crops: int) -> None:
        super().__init__(device)
        self.num_classes, self.clips, self.crops = num_classes, clips, crops

    def sums(self, prediction: VideoPrediction, batch: Batch) -> Tensor:  # type: ignore[override]
        """(8 + 2 K,): `evaluation_sums` of videos and of views; hits and videos of each class."""
        labels, weights = send(batch["label"], self.device), send(batch.weights, self.device)
        views = prediction.views.shape[1]
        of_views = evaluation_sums(
            prediction.views.flatten(0, 1), labels.repeat_interleave(views), weights.repeat_interleave(views)
        )
        hits = (prediction.logits.argmax(1) == labels) * weights.double()
        by_class = hits.new_zeros(2, self.num_classes)
        by_class.index_add_(1, labels, torch.stack([hits, weights.double()]))
        return torch.cat([evaluation_sums(prediction.logits, labels, weights), of_views, by_class.flatten()])

    def values(self, sums: Tensor) -> dict[str, Any]:
        """top1, top5 and loss of videos, and how many (`images`); view_top1 of single views.

        mean_class_top1 is the mean over the classes that occur of the share of their videos that are right.
        """
        videos, views = super().values(sums[:4]), super().values(sums[4:8])
        hits, counts = sums[8:].view(2, -1)
        return videos | {
            "view_top1": views["top1"],
            "views": self.clips * self.crops,
            "mean_class_top1": (hits / counts).nanmean().item(),
        }

    def line(self, values: Mapping[str, Any]) -> str:
        """Accuracies and the loss as text, with the views that they are of."""
        hits = f"top-1 {values['top1']:.2%}, top-5 {values['top5']:.2%}, mean of classes"
        single = f"; single views: top-1 {values['view_top1']:.2%}" if values["views"] > 1 else ""
        return (
            f"{hits} {values['mean_class_top1']:.2%}, loss {values['loss']:.4f} on {values['images']} videos "
            f"({self.clips}x{self.crops} views{single})"
        )
