"""Experts distributed over ranks: which rank holds which expert or slice, and how parameters are marked.

Legend: L local experts. How rows reach experts is in exchange.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.ranks.mesh import Mesh


@dataclass(frozen=True)
class ExpertSlice:
    """The part [first / of, last / of) of a dim; slices of a size that does not divide are uneven."""

    first: int = 0
    last: int = 1
    of: int = 1

    def range(self, size: int) -> range:
        """The indices of a dim of `size` that belong to this part."""
        return range(size * self.first // self.of, size * self.last // self.of)


class Sliced(NamedTuple):
    """The slice that a rank holds of a parameter whose experts are sliced."""

    dim: int  # of (L, ...)
    part: ExpertSlice
    size: int  # of the unsliced dim

    def take(self, unsliced: Tensor) -> Tensor:
        """The view of this rank's slice of an unsliced parameter (L, ...)."""
        held = self.part.range(self.size)
        return unsliced.narrow(self.dim, held.start, len(held))


@dataclass(frozen=True, kw_only=True)
class ExpertParallel:
    """The experts of one layer over the ranks of one expert-parallel group."""

    num_experts: int
    local_experts: range
    part: ExpertSlice = ExpertSlice()  # of the hidden channels of each local expert
    ep_size: int = 1
    group: dist.ProcessGroup | None = None
    expert_dp_group: dist.ProcessGroup | None = (
        None  # ranks with the same experts, over which ZeRO 3 partitions them
    )
    mesh: Mesh | None = None  # None where no row travels
    options: ExchangeOptions = ExchangeOptions()  # of calls without options of their own

    @staticmethod
    def on_one_rank(num_experts: int) -> "ExpertParallel":
        """All experts on this rank."""
        return ExpertParallel(num_experts=num_experts, local_experts=range(num_experts))

    @staticmethod
    def over(mesh: Mesh, num_experts: int, options: ExchangeOptions | None = None) -> "ExpertParallel":
        """The experts divided over the mesh's expert-parallel axis.

        Raises:
            LayoutError: there are more blocks of ranks than experts.
        """
        dims, slices = mesh.dims, mesh.dims.expert_tensor_parallel_size
        here = mesh.ep_rank % slices
        return ExpertParallel(
            num_experts=num_experts,
            local_experts=dims.local_experts(mesh.rank, num_experts),
            part=ExpertSlice(here, here + 1, slices),
            ep_size=dims.ep_size,
            group=mesh.ep_group if dims.ep_size > 1 else None,
            expert_dp_group=mesh.expert_dp_group,
            mesh=mesh if dims.ep_size > 1 else None,
            options=options or ExchangeOptions(),
        )

    def mark(
        self, parameter: nn.Parameter, *, sliced_dim: int | None = None, full_size: int | None = None
    ) -> None:
        """Declare a parameter of shape (L, ...) as expert-parallel.

        `allreduce`, `group_name` (deepspeed/moe/utils.py) and `ds_zero_partition_process_group`, which counts
        where parameters are partitioned as they are made, are DeepSpeed's names; `experts` is ours: the
        global number of each slice along the first dim, which the checkpoint names it by; so is `sliced`.

        Args:
            parameter: what this rank holds: (L, ...).
            sliced_dim: dim of (L, ...) that is sliced over the ranks of a block; an expert that is sliced
                has no parameter without one.
            full_size: of that dim in the unsliced expert.
        """
        assert (sliced_dim is None) == (full_size is None), "a sliced dim has a full size"
        assert sliced_dim is not None or self.part.of == 1, "each slice of an expert must own what it holds"
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = f"ep_size_{self.ep_size}"  # type: ignore[attr-defined]
        if self.expert_dp_group is not None:
            parameter.ds_zero_partition_process_group = self.expert_dp_group  # type: ignore[attr-defined]
        parameter.experts = self.local_experts  # type: ignore[attr-defined]
        parameter.sliced = None  # type: ignore[attr-defined]
        if sliced_dim is not None and full_size is not None:
            sliced = Sliced(sliced_dim, self.part, full_size)
            assert parameter.shape[sliced_dim] == len(self.part.range(full_size))
            parameter.sliced = sliced  # type: ignore[attr-defined]


def copy_mark(source: Tensor, target: Tensor) -> None:
    """Copy the marks of a parameter to the one that replaces it."""
    for name in ("allreduce", "group_name", "ds_zero_partition_process_group", "experts", "sliced"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))


def sliced_of(parameter: Tensor) -> Sliced | None:
    """How a marked parameter is sliced; None for one that is not."""
    return getattr(parameter, "sliced", None)


def experts_of(parameter: Tensor) -> range | None:
    """Global numbers of the experts along dim 0 of a marked parameter; None for a dense one."""
    return getattr(parameter, "experts", None)


def global_name(name: str, expert: int) -> str:
    """Name of one expert's slice: (`mlp.experts.fc1_weight`, 5) -> `mlp.experts.5.fc1_weight`."""
    prefix, _, leaf = name.rpartition(".")
    return f"{prefix}.{expert}.{leaf}"
