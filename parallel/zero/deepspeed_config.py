"""The configuration that DeepSpeed gets."""

from typing import Any

import torch

from parallel.zero.options import EngineOptions, bucket_elements, zero_section


def deepspeed_config(options: EngineOptions, world_size: int, uneven_elements: int | None) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Args:
        options: of the engine.
        world_size: ranks.
        uneven_elements: see `bucket_elements`.
    """
    stage, precision, overlaps = options.zero_stage, options.precision, torch.cuda.is_available()
    zero: dict[str, Any] = {
        "overlap_comm": overlaps,
        **zero_section(options.deepspeed),
        "reduce_bucket_size": bucket_elements(
            options.deepspeed, overlaps=overlaps, uneven_elements=uneven_elements
        ),
        "stage": stage,
        "reduce_scatter": True,  # the only path DeepSpeed tests beside experts
        "contiguous_gradients": True,  # required beside experts at stage 2
    }
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": overlaps}
    config: dict[str, Any] = {
        "steps_per_print": None,
        **options.deepspeed,
        "train_batch_size": options.micro_batch_size * options.grad_accum_steps * world_size,
        "train_micro_batch_size_per_gpu": options.micro_batch_size,
        "gradient_accumulation_steps": options.grad_accum_steps,
        "gradient_clipping": options.max_grad_norm
        if stage
        else 0.0,  # `parallel/zero/engine.py` clips at stage 0
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": options.optimizer != "adamw",  # which tests/parallel tried
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": precision == "bf16"},
        "fp16": {
            "enabled": precision == "fp16",
            "loss_scale": 1.0,
        },  # static: parallel/zero/engine.py sets it
    }
    if precision == "bf16" and stage:  # DeepSpeed refuses fp32 accumulation at stage 0
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
