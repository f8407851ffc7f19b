"""Parameters that ZeRO stage 3 has gathered at a moment of a step: DeepSpeed 0.19.8's coordinator.

A module's parameters are gathered before it runs, up to `prefetch_bucket_size` elements ahead, and stay if
they are used again within `max_reuse_distance` elements, as those of the last layers are in backward;
small ones stay for good. The buffer that a prefetch arrives in is there until its last parameter is used.
What one rank holds whole is not gathered: experts without copies, everything on one rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.plan.memory.rank_params import RankParams
from parallel.ranks.dims import ParallelDims

DEFAULTS = {
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_param_persistence_threshold": 100_000,
}


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The parameters of a rank that are gathered, in elements."""

    whole: int  # of all parameters that are cut
    small: int  # of those that stay
    largest: int
    prefetch: int
    reuse: int
    live: int

    @staticmethod
    def of(held: RankParams, dims: ParallelDims, section: Mapping[str, Any]) -> "Gathered":
        """What a rank gathers under DeepSpeed's `zero_optimization` section."""
        options = {name: int(section.get(name, value)) for name, value in DEFAULTS.items()}
        cut = [g for g in held.groups if (dims.dp_size if g.experts else dims.world_size) > 1]
        sizes = [size for group in cut for size in group.sizes]
        frozen = held.frozen[0] * (dims.world_size > 1) + held.frozen[1] * (dims.dp_size > 1)
        threshold = options["stage3_param_persistence_threshold"]
        return Gathered(
            whole=sum(sizes) + frozen,
            small=sum(size for size in sizes if size <= threshold),
            largest=max(sizes, default=0),
            prefetch=options["stage3_prefetch_bucket_size"],
            reuse=options["stage3_max_reuse_distance"],
            live=options["stage3_max_live_parameters"],
        )

    def forward(self, *, last: bool) -> tuple[int, int]:
        """Elements gathered, and in buffers of prefetches, within the forward pass or at its end."""
        stay = min(self.whole, self.reuse // 2)
        ahead = min(self.prefetch, self.whole)
        if last:
            return self._bounded(stay), 0
        return self._bounded(min(self.whole, stay + ahead)), ahead

    def backward(self, done: int) -> tuple[int, int]:
        """The same in the backward pass, when the gradients of so many elements are there."""
        left = max(0, self.whole - done)
        stay = min(left, max(0, self.reuse // 2 - done))
        ahead = min(self.prefetch, left - stay)
        return self._bounded(min(left, stay + ahead)), ahead

    def _bounded(self, elements: int) -> int:
        return max(self.small, min(elements, self.live + self.largest))
