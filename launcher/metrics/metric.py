"""Metrics of an evaluation: exact on any number of ranks, by sums or by records that are gathered.

Legend: B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.format.index import Manifest
from data_shards.stream.batch import Batch
from launcher.console.columns import aligned
from parallel.ranks.collectives import gather_to_first, sum_over


class Metric(Protocol):
    """One pass over a split: `update` for every batch, then `reduce` on all ranks, then `compute`."""

    @property
    def primary(self) -> str:
        """The value by which checkpoints and runs are compared, such as "top1"."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher `primary` is better."""

    def update(self, prediction: Any, batch: Batch) -> None:
        """Take the model's prediction for a batch; samples of weight 0 are padding and do not count."""

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Join the ranks of a group, None of the world; every rank calls it, after its last batch."""

    def compute(self) -> dict[str, Any]:
        """The values by name, of all ranks; called after `reduce`, on rank 0 alone."""

    def line(self, values: Mapping[str, Any]) -> str:
        """The values as text."""

    def tables(self, values: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, MetricTable]:
        """Tables of the values by name, for people and files; `classes` are the class names of the data."""

    def write(self, directory: Path, manifest: Manifest) -> Sequence[Path]:
        """Write what is too large for the values, such as all predictions; after `compute`, on rank 0 alone.

        Args:
            directory: of the results of the evaluation, which exists.
            manifest: of the split.

        Returns:
            The files.
        """


class MetricTable(NamedTuple):
    """Values in rows, such as one of each class, of which as many as `shown` are printed.

    Floats are fractions; a value of None is left empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    shown: int = 30

    def text(self) -> str:
        """The first rows in columns."""
        rows = [["" if x is None else _shown(x) for x in row] for row in self.rows[: self.shown]]
        lines = aligned([list(self.columns), *rows], right=True, indent="  ")
        if (left := len(self.rows) - self.shown) > 0:
            lines.append(f"  and {left} more in the file")
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, float) else str(value)


class MetricBase:
    """A metric whose values say everything: neither tables nor files."""

    def tables(self, values: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, MetricTable]:
        """None."""
        return {}

    def write(self, directory: Path, manifest: Manifest) -> Sequence[Path]:
        """None."""
        return ()


class SumMetric(MetricBase):
    """A metric whose values follow from sums over the samples, such as hits or a confusion matrix.

    A subclass has `primary`, `higher_is_better`, `line`, `sums` and `values`. The sums of the batches and of
    the ranks are added in fp64, which is exact for counts up to 2^53.

    Args:
        device: of the predictions, and of the sums.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._total: Tensor | None = None

    def sums(self, prediction: Any, batch: Batch) -> Tensor:
        """The sums of one batch: fp64 of any shape, the same for every batch."""
        raise NotImplementedError

    def values(self, sums: Tensor) -> dict[str, Any]:
        """The values by name that follow from the sums of all batches and ranks, on the host."""
        raise NotImplementedError

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add the sums of one batch."""
        sums = self.sums(prediction, batch)
        self._total = sums.clone() if self._total is None else self._total.add_(sums)

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add the sums of all ranks, in one all-reduce."""
        assert self._total is not None, "a metric is reduced after its batches"
        sum_over(self._total, group)

    def compute(self) -> dict[str, Any]:
        """The values of all ranks."""
        assert self._total is not None
        return self.values(self._total.cpu())


class GatherMetric(MetricBase):
    """A metric that needs the records of all samples, such as an average precision over a split.

    A subclass has `primary`, `higher_is_better`, `line`, `records` and `values`. A record is anything that
    pickles and is small beside its sample: the records of the whole split meet on rank 0. There they are in
    the order of the positions of their samples, whatever the ranks, and the padding is left out. Records of
    one position, such as the views of one sample, are merged by `merge`.
    """

    def __init__(self) -> None:
        self._records: list[tuple[int, int, Any]] = []  # position, batch, record
        self._batches = 0

    def records(self, prediction: Any, batch: Batch) -> Sequence[Any]:
        """One record of each sample of a batch: B of them, on the host; padding has any."""
        raise NotImplementedError

    def merge(self, views: Sequence[Any]) -> Any:
        """One record from those of one position, in the order of the stream."""
        return views[0]

    def values(self, records: Sequence[Any]) -> dict[str, Any]:
        """The values by name that follow from the records of all samples, in the order of positions."""
        raise NotImplementedError

    def update(self, prediction: Any, batch: Batch) -> None:
        """Keep the records of the samples that count."""
        rows = zip(
            batch.positions.tolist(), batch.weights.tolist(), self.records(prediction, batch), strict=True
        )
        self._records += [(position, self._batches, record) for position, weight, record in rows if weight]
        self._batches += 1

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Send the records of all ranks to the first rank of the group, in the order of the ranks."""
        self._records = [one for records in gather_to_first(self._records, group) for one in records]

    def compute(self) -> dict[str, Any]:
        """The values of all ranks."""
        in_order = sorted(self._records, key=lambda one: one[:2])  # those of one batch stay in rank order
        grouped = groupby(in_order, key=lambda one: one[0])
        return self.values([self.merge([record for *_, record in views]) for _, views in grouped])
