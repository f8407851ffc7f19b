"""Which expert takes which classes: per MoE layer the experts' shares of every class's choices.

Legend: B images, E experts, K classes, n samples of the split.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from data_shards.stream.batch import Batch
from launcher.evaluation.context import EvalContext
from launcher.metrics.heat_map import CELL, heat_map, labelled
from parallel.ranks.collectives import sum_over

TALLEST = 8192  # pixels of a picture


class Affinity:
    """Counts choices by class and expert while a model is evaluated.

    Args:
        labels: (n,) int64 of the split's samples, in index order, whatever the task reads of them.
        num_classes: K.
        device: of the counts.
    """

    def __init__(self, labels: Tensor, num_classes: int, device: torch.device) -> None:
        self._labels, self._classes, self._device = labels.to(device), num_classes, device
        self._counts: dict[str, Tensor] = {}

    def update(self, output: Any, batch: Batch) -> None:
        """Count one batch; padding does not."""
        counted = batch.weights.to(self._device, torch.int64)
        labels = self._labels[batch.positions.clamp_min(0).to(self._device)]
        for layer, stats in output.moe.items():
            chosen = stats.choices * counted[:, None]  # (B, E)
            if layer not in self._counts:
                self._counts[layer] = chosen.new_zeros(self._classes, chosen.shape[1])
            self._counts[layer].index_add_(0, labels, chosen)

    def counts(self) -> dict[str, Tensor]:
        """Choices of a class's tokens (row) that wanted an expert, by layer, of all ranks: (K, E) int64."""
        return {layer: sum_over(counts.clone()) for layer, counts in self._counts.items()}

    def write(self, context: EvalContext, classes: Sequence[str]) -> None:
        """Write a CSV and a PNG a layer, and the pictures for TensorBoard; every rank calls it together."""
        counts = {layer: found.cpu() for layer, found in self.counts().items()}
        for layer, found in counts.items():
            header = ["class", *(f"expert_{expert}" for expert in range(found.shape[1])), "choices"]
            rows = zip(classes, shares(found).tolist(), found.sum(1).tolist(), strict=True)
            context.write_csv(f"affinity-{layer}", header, [[name, *row, total] for name, row, total in rows])
        if context.mesh.is_first:
            self._draw(context, counts, classes)

    def _draw(self, context: EvalContext, counts: dict[str, Tensor], classes: Sequence[str]) -> None:
        """A picture a layer: a row a class, a column an expert, coloured by its share over the mean."""
        step = context.checkpoint.manifest["step"]
        with SummaryWriter(str(context.run.path / "eval" / "tensorboard")) as board:
            for layer, found in counts.items():
                cell = max(1, min(CELL, TALLEST // len(found)))
                picture = labelled(heat_map(found.tolist(), cell), classes)
                Image.fromarray(picture.transpose(1, 2, 0)).save(context.directory / f"affinity-{layer}.png")
                board.add_image(f"affinity/{layer}", picture, step)
        context.say(f"  which expert takes which classes: {context.directory}/affinity-*")


def shares(counts: Tensor) -> Tensor:
    """Each expert's share of a class's choices: (K, E) -> (K, E) fp64; rows sum to 1, or are 0."""
    return counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
