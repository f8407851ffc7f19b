"""Models that no rank can hold completely: every parameter is partitioned as soon as its module exists.

DeepSpeed's zero.Init takes the place of an allocation on every rank (ZeRO stage 3, Rajbhandari et al. 2020);
values are then filled in one parameter at a time. Dense parameters are partitioned over the world, experts
over the ranks that hold the same ones (`ExpertParallel.mark` declares which).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from parallel.ranks.dims import LayoutError
from parallel.ranks.mesh import Mesh

M = TypeVar("M", bound=nn.Module)


def partitioned(make: Callable[[], M], mesh: Mesh) -> M:
    """Build a module whose parameters are partitioned over the ranks as soon as each submodule exists.

    Parameters have torch's default dtype, as without partitioning.

    Raises:
        LayoutError: DeepSpeed built a parameter of another dtype.
    """
    import deepspeed

    from parallel.zero.start import start_deepspeed  # imports DeepSpeed too

    start_deepspeed()
    dtype = torch.get_default_dtype()
    config = {
        "train_batch_size": mesh.dims.world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    # No dtype argument: DeepSpeed 0.19.8 ignores it on an accelerator without fp16, where it then builds bf16
    # whatever was requested (partition_parameters.py, _set_dtype). It reads the dtype from the configuration.
    with deepspeed.zero.Init(config_dict_or_path=config):
        module = make()
    _check_dtype(module, dtype)
    return module


def _check_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Refuse a module whose weights DeepSpeed has rounded."""
    parts = {name: getattr(p, "ds_tensor", p) for name, p in module.named_parameters()}  # ds_tensor: our part
    wrong = [name for name, part in parts.items() if part.dtype != dtype]
    if wrong:
        raise LayoutError(
            f"DeepSpeed built {len(wrong)} of {len(parts)} parameters in another dtype than {dtype} (the "
            f"first is {wrong[0]}, {parts[wrong[0]].dtype}), so training would start from rounded weights: "
            "install the version of DeepSpeed that setup.py names, or set parallel.zero_stage to 0, 1 or 2"
        )


@torch.no_grad()
def cast_partitions(module: nn.Module, dtype: torch.dtype) -> None:
    """Round partitioned parameters to the dtype of the computation; any other module stays as it is.

    DeepSpeed 0.19.8 rounds the parameters of a module itself, but not those that zero.Init made: it takes
    them to have that dtype (engine.py, _cast_module_mixed_precision), and would compute in fp32.
    """
    for parameter in module.parameters():
        part = getattr(parameter, "ds_tensor", None)
        if part is not None and part.is_floating_point():
            part.data = part.data.to(dtype)
            parameter.data = parameter.data.to(dtype)  # empty, but gathered in its dtype


def gathered(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Gather a parameter, partitioned or not, on all ranks that hold parts of it, which may write it.

    All of them write the same; at the end the values of the first of them are kept.
    """
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
