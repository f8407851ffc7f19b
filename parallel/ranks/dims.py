"""The sizes of a layout: pure arithmetic over the number of ranks and the expert-parallel size. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass


class LayoutError(ValueError):
    """Sizes that do not divide; the message is the equation with its values."""


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """The sizes of a layout: world_size = dp_size x ep_size, where dp_size is the copies of each expert.

    ep_size = blocks x expert_tensor_parallel_size: each block holds its own experts, each of its ranks a
    slice of them.
    """

    world_size: int = 1
    ep_size: int = 1
    expert_tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        if self.ep_size < 1 or self.world_size % self.ep_size:
            raise LayoutError(
                f"parallel.ep_size ({self.ep_size}) must divide the number of ranks ({self.world_size})"
            )
        if self.expert_tensor_parallel_size < 1 or self.ep_size % self.expert_tensor_parallel_size:
            raise LayoutError(
                f"parallel.expert_tensor_parallel_size ({self.expert_tensor_parallel_size}) must divide "
                f"parallel.ep_size ({self.ep_size})"
            )

    @property
    def dp_size(self) -> int:
        """Ranks that hold a copy of the same expert, or of the same slice of it."""
        return self.world_size // self.ep_size

    def ep_ranks(self, rank: int) -> list[int]:
        """The ranks that share one set of experts with `rank`."""
        first = rank - rank % self.ep_size
        return list(range(first, first + self.ep_size))

    def expert_dp_ranks(self, rank: int) -> list[int]:
        """The ranks that hold the same experts as `rank`."""
        return list(range(rank % self.ep_size, self.world_size, self.ep_size))

    def gather_ranks(self, rank: int, degree: int) -> list[int]:
        """The `degree` neighbouring ranks that gather their weights at that gather degree."""
        first = rank - rank % degree
        return list(range(first, first + degree))

    def exchange_ranks(self, rank: int, degree: int) -> list[int]:
        """The ranks that `rank` exchanges tokens with at a gather degree: one of each gathering."""
        first = rank - rank % self.ep_size
        return list(range(first + rank % degree, first + self.ep_size, degree))

    def local_experts(self, rank: int, num_experts: int) -> range:
        """The global numbers of the experts that `rank` holds, or holds a slice of.

        Raises:
            LayoutError: there are fewer experts than blocks.
        """
        blocks = self.ep_size // self.expert_tensor_parallel_size
        if blocks > num_experts:
            divisors = [n for n in range(1, self.ep_size + 1) if self.ep_size % n == 0]
            fits = next(n for n in divisors if self.ep_size <= n * num_experts)
            raise LayoutError(
                f"parallel.ep_size ({self.ep_size}) / parallel.expert_tensor_parallel_size "
                f"({self.expert_tensor_parallel_size}) must be at most model.moe.num_experts "
                f"({num_experts}); parallel.expert_tensor_parallel_size={fits} would do"
            )
        block = rank % self.ep_size // self.expert_tensor_parallel_size
        return range(num_experts * block // blocks, num_experts * (block + 1) // blocks)

    def check_gather_degree(self, degree: int) -> None:
        """Raise LayoutError unless weights can be gathered over `degree` ranks."""
        slices = self.expert_tensor_parallel_size
        if degree < 1 or self.ep_size % degree or (slices % degree and degree % slices):
            raise LayoutError(
                f"parallel.expert_exchange.strategy ({degree}) must divide parallel.ep_size ({self.ep_size}) "
                f"and divide parallel.expert_tensor_parallel_size ({slices}) or be a multiple of it"
            )

    def check_hierarchy(self, ranks_per_node: int, degree: int = 1) -> None:
        """Raise LayoutError unless every exchange group has as many ranks on each node it touches."""
        for first in range(0, self.world_size, self.ep_size):
            for rank in range(first, first + degree):
                sizes = [len(part) for part in by_node(self.exchange_ranks(rank, degree), ranks_per_node)]
                if len(set(sizes)) > 1:
                    raise LayoutError(
                        "parallel.expert_exchange.hierarchical needs nodes that hold equal shares of an "
                        f"expert group: parallel.ep_size ({self.ep_size}) on nodes of {ranks_per_node} ranks "
                        f"gives {sizes}; set hierarchical=false, or an ep_size that divides "
                        f"{ranks_per_node} or is a multiple of it"
                    )


def by_node(ranks: Sequence[int], ranks_per_node: int) -> list[list[int]]:
    """The given ranks node by node; ranks are numbered node after node."""
    nodes = sorted({rank // ranks_per_node for rank in ranks})
    return [[rank for rank in ranks if rank // ranks_per_node == node] for node in nodes]
