"""A batch, the plan that it is made from, and its rows while threads decode them.

Legend: B samples in a batch, H, W height and width of the images in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.stream.collate import BufferPool, Collator
from data_shards.stream.transform import Example


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of one rank: named tensors, such as batch["image"].

    `tensors` are what the collators of the stream's transform give, pinned if there is a GPU: of images with
    labels, `image` (B, 3, H, W) uint8 and `label` (B,) int64. positions (B,) int64 are the key of every
    random draw of a sample: its position in the training stream, or its index in evaluation, -1 for padding.
    weights (B,) float32 are 0 for padding.
    """

    tensors: Mapping[str, Tensor]
    positions: Tensor
    weights: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The samples of a batch: positions, shards and rows, each (B,) int64; position -1 is padding.

    `weights` (B,) float32 are 0 for samples that do not count; None counts all but the padding.
    """

    positions: np.ndarray
    shards: np.ndarray
    rows: np.ndarray
    weights: np.ndarray | None = None


class UnfinishedBatch:
    """A batch whose samples are being decoded; each thread puts rows of its own."""

    def __init__(
        self, plan: BatchPlan, collators: Mapping[str, Collator], buffers: Mapping[str, BufferPool]
    ) -> None:
        count = len(plan.positions)
        self._plan = plan
        self._weights = (plan.positions >= 0 if plan.weights is None else plan.weights).astype(np.float32)
        self._rows = {name: one.rows(name, count, buffers[name]) for name, one in collators.items()}

    def put(self, row: int, example: Example | None) -> None:
        """Write a sample; None, padding or a sample that is left out, has weight 0."""
        if example is None:
            self._weights[row] = 0
        elif example.keys() != self._rows.keys():
            given, taken = (", ".join(sorted(names)) for names in (example, self._rows))
            raise DataError(f"the transform gives {given}, and its collators take {taken}")
        for name, rows in self._rows.items():
            rows.put(row, None if example is None else example[name])

    def finished(self) -> Batch:
        """The batch, once every row was put."""
        tensors: dict[str, Tensor] = {}
        for rows in self._rows.values():
            tensors |= rows.tensors()
        positions = torch.from_numpy(self._plan.positions.copy())
        return Batch(tensors=tensors, positions=positions, weights=torch.from_numpy(self._weights))
