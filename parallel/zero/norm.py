"""The gradient norm of DeepSpeed's bf16 optimizer, with fewer waits for the device.

DeepSpeed 0.19.8 sends a constant to the device for each norm, and beside experts reads the norm of each
group, then whether one is invalid, then the total. The arithmetic here is the same, read once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.utils import is_invalid_grad_norm
from deepspeed.utils import groups
from torch import Tensor

from parallel.ranks.host import read

INVALID = -1.0  # DeepSpeed's value for a norm that is not finite


def norm_of_tensors(
    input_tensors: Iterable[Tensor],
    norm_type: float = 2,
    mpu: Any = None,
    moe_ep_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The norm of all tensors together, a scalar on their device, summed over the ranks of `moe_ep_group`.

    Unlike DeepSpeed's, it is inf or nan where it is not finite: what asks for INVALID sees that too.
    """
    assert mpu is None  # a unit of tensor parallelism, which these layouts have not
    norms = torch.stack([tensor.detach().float().norm(norm_type) for tensor in input_tensors])
    total = norms.pow(norm_type).sum()
    if moe_ep_group is not None and dist.get_world_size(moe_ep_group) > 1:
        dist.all_reduce(total, group=moe_ep_group)
    return total.pow(1.0 / norm_type)


def norm_with_experts(
    non_expert_norm: Tensor, mpu: Any, expert_tensors: Mapping[str, Sequence[Tensor]], norm_type: float = 2
) -> float:
    """The global norm of dense gradients and of all experts' gradients, as DeepSpeed combines them.

    Args:
        non_expert_norm: of the dense gradients: a scalar.
        mpu: None.
        expert_tensors: this rank's gradients by group of experts.
        norm_type: of the norm, finite.

    Returns:
        The norm, or INVALID.
    """
    experts = [
        norm_of_tensors(tensors, norm_type, mpu, groups._get_expert_parallel_group(name))
        for name, tensors in expert_tensors.items()
    ]
    norms = read(torch.stack([non_expert_norm, *experts]))
    if is_invalid_grad_norm(norms):
        return INVALID
    total = float(norms.pow(norm_type).sum().item() ** (1.0 / norm_type))
    return INVALID if total == float("inf") else total


def read_norm_once() -> None:
    """Let DeepSpeed's bf16 optimizer use these two."""
    bf16_optimizer.get_global_norm_of_tensors = norm_of_tensors
    bf16_optimizer.get_norm_with_moe_layers = norm_with_experts
