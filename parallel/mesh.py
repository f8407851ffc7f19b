"""Which ranks share what: pure arithmetic over world and expert-parallel size, then the process groups.

With world_size = 4 and ep_size = 2, every rank has its own images (data parallel over the world), and

    rank        0       1       2       3
    experts   0 .. 3  4 .. 7  0 .. 3  4 .. 7      num_experts = 8
    ep group  [ 0       1 ]   [ 2       3 ]       tokens travel inside it by all-to-all
    expert-dp [ 0 --------------2 ] [ 1 --------------3 ]   gradients of one expert are reduced over it

Expert-parallel ranks are contiguous, so that an expert group stays inside a node where it fits.
"""

from dataclasses import dataclass

import torch.distributed as dist


class LayoutError(ValueError):
    """Sizes that do not divide; the message is the equation with its values."""


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """The sizes of a layout: world_size = dp_size x ep_size, where dp_size is the copies of each expert."""

    world_size: int = 1
    ep_size: int = 1

    def __post_init__(self) -> None:
        if self.ep_size < 1 or self.world_size % self.ep_size:
            raise LayoutError(
                f"parallel.ep_size ({self.ep_size}) must divide the number of ranks ({self.world_size})"
            )

    @property
    def dp_size(self) -> int:
        """Ranks that hold a copy of the same expert."""
        return self.world_size // self.ep_size

    def ep_ranks(self, rank: int) -> list[int]:
        """The ranks that share one set of experts with `rank`."""
        first = rank - rank % self.ep_size
        return list(range(first, first + self.ep_size))

    def expert_dp_ranks(self, rank: int) -> list[int]:
        """The ranks that hold the same experts as `rank`."""
        return list(range(rank % self.ep_size, self.world_size, self.ep_size))

    def local_experts(self, rank: int, num_experts: int) -> range:
        """The global numbers of the experts that `rank` holds.

        Raises:
            LayoutError: the experts do not divide over the expert-parallel ranks.
        """
        if num_experts % self.ep_size:
            raise LayoutError(
                f"parallel.ep_size ({self.ep_size}) must divide model.moe.num_experts ({num_experts})"
            )
        count = num_experts // self.ep_size
        first = rank % self.ep_size * count
        return range(first, first + count)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A layout seen from one rank, with its process groups; they are None where there is only one process."""

    dims: ParallelDims
    rank: int = 0
    ep_group: dist.ProcessGroup | None = None
    expert_dp_group: dist.ProcessGroup | None = None

    @property
    def ep_rank(self) -> int:
        """Place of this rank in its expert-parallel group."""
        return self.rank % self.dims.ep_size

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.rank == 0


def build_mesh(dims: ParallelDims) -> Mesh:
    """Make the groups of a layout; every rank of the default process group calls it."""
    rank = dist.get_rank()
    return Mesh(
        dims=dims,
        rank=rank,
        ep_group=_own_group([dims.ep_ranks(r) for r in range(0, dims.world_size, dims.ep_size)], rank),
        expert_dp_group=_own_group([dims.expert_dp_ranks(r) for r in range(dims.ep_size)], rank),
    )


def _own_group(groups: list[list[int]], rank: int) -> dist.ProcessGroup:
    """Make every group in the same order on every rank, as new_group wants it; return the one of `rank`."""
    made = [(ranks, dist.new_group(ranks)) for ranks in groups]
    own = [group for ranks, group in made if rank in ranks]
    return own[0]
