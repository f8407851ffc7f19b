"""mIoU, mAcc and aAcc over the pixels of a split, from one confusion matrix of exact counts.

An IoU is that of the whole set, not a mean over images (Everingham et al. 2015, section 4.3).
Legend: B images of H x W pixels, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import MetricTable, SumMetric
from launcher.tasks.segmentation.prediction import SegmentationPrediction
from parallel.ranks.host import send
from swin_moe.heads.upernet_config import IGNORED

ROWS = 1024  # of an image, whose pixels are counted at once


def confusion(labels: Tensor, found: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class (row) that were taken for each class (column): (K, K) int64.

    Args:
        labels: of any shape, uint8; pixels with the label 255 do not count.
        found: the predicted classes, of the same shape, 0 .. K - 1.
        num_classes: K.
    """
    counted = labels != IGNORED
    pairs = labels[counted].long() * num_classes + found[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


class SegmentationMetric(SumMetric):
    """Intersections over unions and accuracies.

    Args:
        device: of the predictions.
        num_classes: K.
    """

    primary, higher_is_better = "miou", True

    def __init__(self, device: torch.device, num_classes: int) -> None:
        super().__init__(device)
        self.num_classes = num_classes

    def sums(self, prediction: SegmentationPrediction, batch: Batch) -> Tensor:
        """(K * K + 1,): the confusion matrix, and images."""
        total = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=self.device)
        for image in batch.weights.nonzero()[:, 0].tolist():
            labels = batch["mask"][image]
            for some, found in zip(labels.split(ROWS), prediction.labels[image].split(ROWS), strict=True):
                total += confusion(send(some, self.device), found, self.num_classes)
        images = batch.weights.double().sum().to(self.device)
        return torch.cat([total.flatten().double(), images[None]])

    def values(self, sums: Tensor) -> dict[str, Any]:
        """miou, macc and aacc (fractions), the classes of the mean, labelled pixels, images, and by class.

        A class that neither occurs nor is predicted has no IoU, one that does not occur no accuracy: they
        are left out of the means, and None by class.
        """
        matrix = sums[:-1].view(self.num_classes, self.num_classes)
        right, occurs, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        union = occurs + predicted - right
        iou, accuracy = right / union, right / occurs
        return {
            "miou": iou.nanmean().item(),
            "macc": accuracy.nanmean().item(),
            "aacc": (right.sum() / occurs.sum()).item(),
            "classes": int((union > 0).sum()),
            "pixels": int(occurs.sum()),
            "images": int(sums[-1]),
            "class_iou": _known(iou),
            "class_accuracy": _known(accuracy),
            "class_pixels": [int(count) for count in occurs],
        }

    def line(self, values: Mapping[str, Any]) -> str:
        """The three means as text."""
        means = f"mIoU {values['miou']:.2%}, mAcc {values['macc']:.2%}, aAcc {values['aacc']:.2%}"
        return f"{means} over {values['classes']} classes on {values['images']} images"

    def tables(self, values: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, MetricTable]:
        """A row for each class, the lowest IoU first, and classes without one last."""
        names = classes or [str(label) for label in range(self.num_classes)]
        columns = ("class", "iou", "accuracy", "pixels")
        by_class = (values[name] for name in ("class_iou", "class_accuracy", "class_pixels"))
        rows = sorted(zip(names, *by_class, strict=True), key=lambda row: (row[1] is None, row[1] or 0.0))
        return {"classes": MetricTable(columns, rows)}


def _known(values: Tensor) -> list[float | None]:
    """The values, None where there is none (0 / 0)."""
    return [None if value != value else value for value in values.tolist()]
