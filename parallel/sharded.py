"""Models that no rank can hold whole: every parameter is partitioned as soon as its module exists.

DeepSpeed's zero.Init takes the place of an allocation on every rank (ZeRO stage 3, Rajbhandari et al. 2020);
values are then filled in one parameter at a time. Dense parameters are cut over the whole world, experts over
the ranks that hold the same ones (`ExpertParallel.mark` tells DeepSpeed which).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from parallel.mesh import Mesh


def construction(mesh: Mesh, dtype: torch.dtype = torch.float32) -> AbstractContextManager[Any]:
    """Within it, each parameter of a module is cut over the ranks when the module's constructor returns."""
    import deepspeed

    from parallel.zero import start_deepspeed  # imports DeepSpeed too

    start_deepspeed()
    config = {
        "train_batch_size": mesh.dims.world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    return deepspeed.zero.Init(config_dict_or_path=config, dtype=dtype)


def whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Within it, every holder has the whole of a parameter, partitioned or not, and may write it.

    All holders write the same; at the end the values of the first of them are kept.
    """
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
