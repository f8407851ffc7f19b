"""Which class is taken for which, as CSV.

Legend: B images, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.evaluation.context import EvalContext
from launcher.metrics.accuracy import ClassificationMetric
from parallel.ranks.collectives import sum_over


class Confusion:
    """Counts pairs of classes while a model is evaluated.

    Args:
        metric: whose scores decide.
        num_classes: K.
        device: of the counts.
    """

    def __init__(self, metric: ClassificationMetric, num_classes: int, device: torch.device) -> None:
        self._metric, self._classes, self._device = metric, num_classes, device
        self._pairs = torch.zeros(num_classes**2, dtype=torch.int64, device=device)

    def update(self, output: Any, batch: Batch) -> None:
        """Count one batch; padding does not."""
        best = self._metric.scores(output).argmax(1)
        pairs = batch["label"].to(self._device) * self._classes + best
        self._pairs.scatter_add_(0, pairs, batch.weights.to(self._device, torch.int64))

    def matrix(self) -> Tensor:
        """Images of a class (row) that were taken for a class (column), of all ranks: (K, K) int64."""
        return sum_over(self._pairs).view(self._classes, self._classes)

    def write(self, context: EvalContext, classes: Sequence[str]) -> None:
        """Write confusion.csv and classes.csv, and name the worst classes; every rank calls it together."""
        matrix = self.matrix().cpu()
        rows = [[name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)]
        context.write_csv("confusion", ["class", *classes], rows)
        worst = worst_classes(matrix, classes)
        context.write_csv("classes", ["class", "images", "accuracy", "most_taken_for", "times"], worst)
        for name, images, accuracy, other, times in worst[:5]:
            if times:
                context.say(f"  {name}: {accuracy:.2%} of {images} images, {times} taken for {other}")


def worst_classes(matrix: Tensor, classes: Sequence[str]) -> list[list[Any]]:
    """Every class that has images, the worst first: name, images, accuracy, most often taken for, times.

    Args:
        matrix: (K, K) true class by class that it was taken for.
        classes: K names.
    """
    rows = []
    for label, row in enumerate(matrix.tolist()):
        if (images := sum(row)) == 0:
            continue
        wrong = [0 if other == label else count for other, count in enumerate(row)]
        times = max(wrong)
        taken_for = classes[wrong.index(times)] if times else ""
        rows.append([classes[label], images, row[label] / images, taken_for, times])
    return sorted(rows, key=lambda row: row[2])
