"""Sums over micro-batches and ranks of what the MoE layers did and what the losses were.

Legend: E experts, R ranks of the world.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parallel.ranks.collectives import sum_over
from parallel.ranks.host import read, send
from swin_moe.moe.layer import MoEStats


@dataclass(frozen=True, kw_only=True)
class LayerTotals:
    """What one MoE layer did in all passes of all ranks."""

    tokens: list[int]  # (E,) choices that wanted each expert, dropped ones included
    dropped: int  # choices that found no slot
    entropy: float  # of a token's scores, in nats: the mean over the passes
    received: list[int]  # (R,) rows that each rank's experts computed

    @property
    def shares(self) -> list[float]:
        """Each expert's share of the choices: (E,)."""
        return [_ratio(tokens, sum(self.tokens)) for tokens in self.tokens]

    def scalars(self) -> dict[str, float]:
        """The figures of a record, by name: see docs/configuration.md."""
        return {
            "dropped_fraction": _ratio(self.dropped, sum(self.tokens)),
            "entropy": self.entropy,
            "load_cv": _variation(self.tokens),
            "load_max_over_mean": _peak(self.tokens),
            "received_max_over_mean": _peak(self.received),
        }


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Everything that was added on any rank."""

    passes: int  # forward passes
    counts: dict[str, int]  # of the caller's choosing
    sums: dict[str, float]  # of the caller's choosing
    layers: dict[str, LayerTotals]  # by the layer's name
    loads: dict[str, Tensor]  # (E,) int64 by layer: the layers' `tokens`, still on the device
    raised: dict[str, list[int]] = field(
        default_factory=dict
    )  # ranks by flag; `nonfinite` is of the watched sums

    def means(self) -> dict[str, float]:
        """The caller's sums over the passes."""
        return {name: value / self.passes for name, value in self.sums.items()}

    @property
    def dropped_fraction(self) -> float:
        """The share of all choices that found no slot; 0 without a choice."""
        layers = self.layers.values()
        return _ratio(sum(layer.dropped for layer in layers), sum(sum(layer.tokens) for layer in layers))


class MetricAccumulator:
    """Adds up forward passes on the device; one all-reduce and one wait for the device when it is read.

    It is one fp64 vector, exact for counts up to 2^53: 1 for the pass, the caller's sums, and of every layer
    `tokens` (E,), `dropped`, `entropy` and `received` (R,), where a rank fills its own place alone. Flags
    are (R,) each too.

    Args:
        rank: this rank's place in the world.
        world_size: R.
        watched: so many sums, the first ones, that a rank raises the flag `nonfinite` for; None is all.
    """

    def __init__(self, *, rank: int, world_size: int, watched: int | None = None) -> None:
        self._rank, self._world_size, self._watched = rank, world_size, watched
        self._total: Tensor | None = None
        self._sizes: list[int] = []  # 1, the caller's, then of each layer E + 2 + R
        self._names: list[str] = []  # of the caller's sums
        self._layers: list[str] = []

    def add(self, sums: Mapping[str, Tensor], moe: Mapping[str, MoEStats]) -> None:
        """Add one forward pass: scalars of the caller's choosing, and the statistics of the MoE layers.

        Every pass of every rank has the same names in the same order.

        Raises:
            ValueError: a pass has other names than the one before it.
        """
        if self._names and self._names != list(sums):
            raise ValueError(f"the values of a pass ({', '.join(sums)}) must be {', '.join(self._names)}")
        values = torch.stack(list(sums.values()))
        parts = [torch.ones(1, device=values.device), values, *map(self._vector, moe.values())]
        flat = torch.cat([part.detach().double() for part in parts])
        self._total = flat if self._total is None else self._total + flat
        self._names, self._sizes, self._layers = list(sums), [len(part) for part in parts], list(moe)

    def _vector(self, stats: MoEStats) -> Tensor:
        """One layer's part of the sums: (E + 2 + R,)."""
        received = torch.zeros(self._world_size, dtype=torch.float64, device=stats.load.device)
        received[self._rank] = stats.received
        scalars = torch.stack([stats.dropped.double(), stats.entropy.double()])
        return torch.cat([stats.load.double(), scalars, received])

    def reduce(
        self, counts: Mapping[str, int] | None = None, flags: Mapping[str, bool] | None = None
    ) -> Totals:
        """Sum over all ranks; every rank calls it, after at least one pass.

        Args:
            counts: of this rank, of the same names on every rank.
            flags: that this rank raises or not, of the same names on every rank.
        """
        assert self._total is not None
        counts, flags = counts or {}, flags or {}
        count = self._sizes[1] if self._watched is None else self._watched
        raised = torch.zeros(1 + len(flags), self._world_size, dtype=torch.float64)
        raised[1:, self._rank] = torch.tensor([*flags.values()], dtype=torch.float64)
        own = torch.tensor(list(counts.values()), dtype=torch.float64)
        known = send(torch.cat([own, raised.flatten()]), self._total.device)
        known[len(counts) + self._rank] = ~torch.isfinite(self._total[1 : 1 + count]).all()
        total = sum_over(torch.cat([known, self._total]))
        sizes = [len(counts), raised.numel(), *self._sizes]
        summed, flat, (passes,), sums, *layers = read(total).split(sizes)
        loads = [part[: -2 - self._world_size].long() for part in total.split(sizes)[4:]]
        rows = flat.view(-1, self._world_size)
        return Totals(
            passes=int(passes),
            counts=dict(zip(counts, summed.long().tolist(), strict=True)),
            sums=dict(zip(self._names, sums.tolist(), strict=True)),
            layers={
                name: self._layer(part, int(passes)) for name, part in zip(self._layers, layers, strict=True)
            },
            loads=dict(zip(self._layers, loads, strict=True)),
            raised={
                name: row.nonzero().flatten().tolist()
                for name, row in zip(["nonfinite", *flags], rows, strict=True)
            },
        )

    def _layer(self, part: Tensor, passes: int) -> LayerTotals:
        """Read what `_vector` wrote, on the host."""
        ranks = self._world_size
        tokens, (dropped, entropy), received = part.split([len(part) - 2 - ranks, 2, ranks])
        return LayerTotals(
            tokens=tokens.long().tolist(),
            dropped=int(dropped),
            entropy=float(entropy) / passes,
            received=received.long().tolist(),
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _peak(counts: list[int]) -> float:
    """The largest over the mean; 1 is even, 0 where there is nothing."""
    return _ratio(max(counts) * len(counts), sum(counts))


def _variation(counts: list[int]) -> float:
    """Coefficient of variation: the standard deviation of the population over the mean; 0 is even."""
    mean = sum(counts) / len(counts)
    return _ratio(math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts)), mean)
