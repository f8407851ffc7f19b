"""The accuracy of the nearest neighbour among all other samples of a split, which no sums over ranks give."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data_shards.stream.batch import Batch
from launcher.metrics.metric import GatherMetric
from tests.toy_task.model import ToyOutput

Record = tuple[int, list[float]]  # label and projection


class NearestNeighbour(GatherMetric):
    """The share of samples whose nearest other sample, by projection, has their label."""

    primary, higher_is_better = "neighbour", True

    def records(self, prediction: ToyOutput, batch: Batch) -> Sequence[Record]:
        return list(zip(batch["label"].tolist(), prediction.projection.float().tolist(), strict=True))

    def values(self, records: Sequence[Record]) -> dict[str, Any]:
        labels = torch.tensor([label for label, _ in records])
        points = torch.tensor([point for _, point in records], dtype=torch.float64)
        distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
        hits = (labels[distances.argmin(1)] == labels).double().mean().item()
        in_order = torch.arange(1, len(points) + 1, dtype=torch.float64)
        ordered = (in_order @ points.norm(dim=1)).item() / len(points)  # tells orders of the samples apart
        return {"neighbour": hits, "ordered": ordered, "images": len(records)}

    def line(self, values: Mapping[str, Any]) -> str:
        return f"nearest neighbour {values['neighbour']:.2%} on {values['images']} images"
