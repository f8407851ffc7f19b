"""A batch, the plan that it is made from, and the memory that its images take turns in.

Legend: B samples in a batch, H, W height and width of the images in pixels.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of one rank: named tensors, such as batch["image"].

    `tensors` are what the transform of the stream gives: of images with labels, `image` (B, 3, H, W) uint8,
    pinned if there is a GPU, and `label` (B,) int64. positions (B,) int64 are the key of every random draw of
    a sample: its position in the training stream, or its index in evaluation, -1 for padding. weights (B,)
    float32 are 0 for padding.
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


class BufferPool:
    """At most `size` reusable buffers for the images of batches; one is reused once no tensor refers to it.

    Images are channels-last in memory, as decoders write them and as convolutions prefer them. On a machine
    with a GPU the memory is pinned, and torch's caching host allocator is the pool: it also waits for copies.
    """

    def __init__(self, sides: tuple[int, int], size: int, pinned: bool | None) -> None:
        self.sides, self.size = sides, size  # sides: (H, W)
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        self._buffers: list[np.ndarray] = []

    def batch(self, plan: BatchPlan) -> Batch:
        """A batch with final positions and weights; labels are zero, images uninitialized (padding black)."""
        images = self._images(len(plan.positions))
        if (padding := plan.positions < 0).any():
            images[torch.from_numpy(padding)] = 0
        return Batch(
            tensors={
                "image": images,
                "label": torch.from_numpy(np.zeros(len(plan.positions), dtype=np.int64)),
            },
            positions=torch.from_numpy(plan.positions.copy()),
            weights=torch.from_numpy((~padding if plan.weights is None else plan.weights).astype(np.float32)),
        )

    def _images(self, samples: int) -> Tensor:
        shape = samples, *self.sides, 3
        if self.pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).permute(0, 3, 1, 2)
        for buffer in self._buffers:
            # A tensor on it, or a view of one, holds a reference; else: the list, `buffer`, the argument.
            if len(buffer) == samples and sys.getrefcount(buffer) == 3:
                return torch.from_numpy(buffer).permute(0, 3, 1, 2)
        self._buffers = [np.empty(shape, dtype=np.uint8), *self._buffers[: self.size - 1]]
        return torch.from_numpy(self._buffers[0]).permute(0, 3, 1, 2)
