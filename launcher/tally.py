"""Sums over micro-batches and ranks of what the MoE layers did and what the losses were.

Legend: L MoE layers, E experts.
"""

import torch
from torch import Tensor

from parallel.collectives import sum_over
from swin_moe.model import ModelOutput


class Tally:
    """Adds up forward passes on the device; one all-reduce and one wait for the device when it is read."""

    def __init__(self, device: torch.device, num_sums: int) -> None:
        self._sums = torch.zeros(num_sums, dtype=torch.float64, device=device)
        self._dropped = torch.zeros((), dtype=torch.float64, device=device)
        self._load: dict[str, Tensor] = {}  # (E,) choices by layer

    def add(self, sums: Tensor, output: ModelOutput) -> None:
        """Add one forward pass: sums (num_sums,) of the caller's choosing, and the layers' statistics."""
        self._sums += sums.detach().double()
        for layer, stats in output.moe.items():
            self._dropped += stats.dropped
            self._load[layer] = self._load.get(layer, 0.0) + stats.load.double()

    def reduce(self) -> tuple[list[float], float, dict[str, list[float]]]:
        """Sum over all ranks.

        Returns:
            the caller's sums; the share of choices that found no slot; each expert's share of the choices, by
            layer.
        """
        parts = [self._sums, self._dropped[None], *self._load.values()]
        total = sum_over(torch.cat(parts)).split([len(part) for part in parts])
        choices = sum(float(load.sum()) for load in total[2:])
        shares = {
            layer: (load / load.sum()).tolist() for layer, load in zip(self._load, total[2:], strict=True)
        }
        return total[0].tolist(), float(total[1]) / choices if choices else 0.0, shares
