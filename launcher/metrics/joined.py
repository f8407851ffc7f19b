"""Several metrics of one pass over a split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_shards.format.index import Manifest
from data_shards.stream.batch import Batch
from launcher.metrics.metric import Metric, MetricTable


class JoinedMetric:
    """The values of several metrics together; the first one decides which checkpoint is best.

    Their values have different names, but for those that say the same of the split, such as `images`.

    Args:
        first: has the primary value.
        others: each gets every prediction, too.
    """

    def __init__(self, first: Metric, *others: Metric) -> None:
        self.metrics = first, *others
        self.primary, self.higher_is_better = first.primary, first.higher_is_better

    def update(self, prediction: Any, batch: Batch) -> None:
        """Take a prediction."""
        for one in self.metrics:
            one.update(prediction, batch)

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Join the ranks."""
        for one in self.metrics:
            one.reduce(group)

    def compute(self) -> dict[str, Any]:
        """The values of all metrics."""
        return {name: value for one in self.metrics for name, value in one.compute().items()}

    def line(self, values: Mapping[str, Any]) -> str:
        """The lines of all metrics."""
        return "; ".join(one.line(values) for one in self.metrics)

    def tables(self, values: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, MetricTable]:
        """The tables of all metrics."""
        return {name: table for one in self.metrics for name, table in one.tables(values, classes).items()}

    def write(self, directory: Path, manifest: Manifest) -> Sequence[Path]:
        """The files of all metrics."""
        return [path for one in self.metrics for path in one.write(directory, manifest)]
