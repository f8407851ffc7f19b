"""Metrics on one rank and on several: sums and gathered records give the same values, by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import GatherMetric, SumMetric
from tests.distributed import run_on_ranks

# sample i has value 2^i; -1 is padding. Batches of two, dealt to the ranks in turn
POSITIONS = [4, 0, 3, 1, 2, 5, -1, -1]
VALUES = [16.0, 1.0, 8.0, 2.0, 4.0, 32.0, 100.0, 200.0]


class Total(SumMetric):
    """The sum and the number of values, and a table of which are above a bound: any shape is summed."""

    primary, higher_is_better = "total", True

    def sums(self, prediction: Tensor, batch: Batch) -> Tensor:
        return torch.stack([prediction * batch.weights, batch.weights]).double()

    def values(self, sums: Tensor) -> dict[str, Any]:
        total, count = sums.sum(1).tolist()
        return {"total": total, "images": int(count)}

    def line(self, values: Mapping[str, Any]) -> str:
        return f"{values['total']}"


class InOrder(GatherMetric):
    """All records."""

    primary, higher_is_better = "last", False

    def records(self, prediction: Tensor, batch: Batch) -> Sequence[float]:
        return prediction.tolist()

    def merge(self, views: Sequence[float]) -> Any:
        return views[0] if len(views) == 1 else list(views)

    def values(self, records: Sequence[Any]) -> dict[str, Any]:
        return {"last": records[-1], "all": list(records)}

    def line(self, values: Mapping[str, Any]) -> str:
        return f"{values['all']}"


def evaluated(metric: SumMetric | GatherMetric, positions: Sequence[int]) -> dict[str, Any] | None:
    """The values of all ranks, on rank 0."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for start in range(2 * rank, len(positions), 2 * ranks):
        part = slice(start, start + 2)
        places = torch.tensor(positions[part])
        batch = Batch(tensors={}, positions=places, weights=(places >= 0).float())
        metric.update(torch.tensor(VALUES[part]), batch)
    metric.reduce()
    return metric.compute() if rank == 0 else None


def both(views: bool = False) -> list[Any]:
    positions = [4, 0, 3, 1, 4, 0, -1, -1] if views else POSITIONS
    return [
        evaluated(InOrder(), positions),
        None if views else evaluated(Total(torch.device("cpu")), positions),
    ]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_gives_the_values_of_all_samples_in_order(ranks: int) -> None:
    in_order, total = run_on_ranks(both, ranks)[0]
    assert in_order == {"last": 32.0, "all": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]}
    assert total == {"total": 63.0, "images": 6}


@pytest.mark.parametrize("ranks", [1, 2])
def test_views_of_one_sample_are_merged_in_the_order_of_the_stream(ranks: int) -> None:
    in_order, _ = run_on_ranks(both, ranks, True)[0]
    assert in_order["all"] == [[1.0, 32.0], 2.0, 8.0, [16.0, 4.0]]


def test_only_the_first_rank_holds_the_records() -> None:
    values = run_on_ranks(both, 2)
    assert values[1] == [None, None]
