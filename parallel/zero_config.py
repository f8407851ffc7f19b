"""The configuration that DeepSpeed gets: what the layout decides, and what a user may add to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch

from parallel.env import choose_accelerator

ZeroStage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "sgd", "lamb", "fused_adam", "fused_lamb"]

DTYPES: dict[str, torch.dtype] = {  # by Precision
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

OURS = {  # DeepSpeed's option -> who decides it here
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "zero_allow_untested_optimizer": "optim.optimizer",
    "scheduler": "optim",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload_optimizer",
    "zero_optimization.reduce_scatter": "the experts' reduction, which needs it",
    "zero_optimization.contiguous_gradients": "the experts' reduction, which needs it",
    "zero_optimization.zero_hpz_partition_size": "the layout of the experts",
    "zero_optimization.mics_shard_size": "the layout of the experts",
    "prescale_gradients": "the reduction, whose results must not depend on the layout",
    "gradient_predivide_factor": "the reduction, whose results must not depend on the layout",
    "sparse_gradients": "the reduction, whose results must not depend on the layout",
    "data_efficiency": "data",
    "curriculum_learning": "data",
    "checkpoint": "checkpoint",
    "expert_parallel": "parallel.ep_size",
    "tensor_parallel": "parallel.expert_slices",
    "sequence_parallel_size": "the layout, which has no such axis",
    "pipeline": "the layout, which has no such axis",
    "elasticity": "the checkpoint, which loads at any number of ranks",
    "compile": "train.compile",
}
FURTHER = (  # what of DeepSpeed 0.19.8 makes sense beside ours
    "zero_optimization",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "disable_allgather",
    "aio",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "steps_per_print",
    "dump_state",
    "log_level",
    "timers",
    "graph_harvesting",
    "disable_python_gc",
    "tensorboard",
    "wandb",
    "comet",
    "csv_monitor",
)
DEEPSPEEDS_BUCKET = 500_000_000  # elements of a reduction bucket, by DeepSpeed's default
OVERLAPPING_BUCKET = 25_000_000  # a bucket that is full, and reduced, long before a backward pass has ended


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine works; only `precision`, `optimizer`, `clip_norm` and the batch change results.

    Args:
        zero_stage: 0 to 3 (Rajbhandari et al. 2020).
        precision: `bf16` and `fp16` compute in it, with fp32 masters; fp16 with a dynamic loss scale.
        offload_optimizer: keep masters and moments in host memory, and update them there (ZeRO-Offload).
        clip_norm: bound of the global gradient norm, every expert counted once; 0 for none.
        micro_batch_size: images a rank and forward pass.
        grad_accum_steps: micro-batches an optimizer step.
        deepspeed: further options of DeepSpeed's configuration.
        optimizer: see parallel/optimizers.py.
    """

    zero_stage: ZeroStage
    precision: Precision
    clip_norm: float
    micro_batch_size: int
    grad_accum_steps: int
    offload_optimizer: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    optimizer: OptimizerName = "adamw"


def check_deepspeed(options: Mapping[str, Any]) -> None:
    """Raise ValueError for what DeepSpeed is not to be told, naming what decides it, or does not know."""
    names = [*options, *(f"zero_optimization.{name}" for name in _section(options))]
    errors = [f"deepspeed.{name} is decided by {OURS[name]}; leave it out" for name in names if name in OURS]
    for name in options:
        if name not in OURS and name not in FURTHER:
            near = get_close_matches(name, FURTHER, 1)
            hint = f"did you mean deepspeed.{near[0]}?" if near else f"there are {', '.join(FURTHER)}"
            errors.append(f"deepspeed.{name}: no such option; {hint}")
    if errors:
        raise ValueError("; ".join(errors))


def check_zero_section(options: Mapping[str, Any]) -> None:
    """Raise ValueError for what DeepSpeed does not accept in `zero_optimization`; imports DeepSpeed."""
    if not _section(options):
        return
    choose_accelerator()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**_section(options))
    except ValidationError as error:
        found = (
            f"deepspeed.zero_optimization.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
        )
        raise ValueError("; ".join(found)) from error


def default_bucket(*, overlaps: bool) -> int:
    """Elements of a reduction bucket where the user does not say.

    DeepSpeed's default holds any Swin whole, so that nothing would be reduced beside the backward pass, and
    takes two buckets of memory for it.
    """
    return OVERLAPPING_BUCKET if overlaps else DEEPSPEEDS_BUCKET


def deepspeed_config(options: EngineOptions, world_size: int, reduce_bucket: int | None) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Args:
        options: of the engine.
        world_size: ranks.
        reduce_bucket: elements of a bucket of gradients, where it is not to be DeepSpeed's or the user's.
    """
    stage, precision, overlaps = options.zero_stage, options.precision, torch.cuda.is_available()
    zero: dict[str, Any] = {
        "overlap_comm": overlaps,
        "reduce_bucket_size": default_bucket(overlaps=overlaps),
        **_section(options.deepspeed),
        "stage": stage,
        "reduce_scatter": True,  # the only path DeepSpeed tests beside experts
        "contiguous_gradients": True,  # required beside experts at stage 2
    }
    if reduce_bucket is not None:
        zero["reduce_bucket_size"] = reduce_bucket
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": overlaps}
    config: dict[str, Any] = {
        "steps_per_print": None,
        **options.deepspeed,
        "train_batch_size": options.micro_batch_size * options.grad_accum_steps * world_size,
        "train_micro_batch_size_per_gpu": options.micro_batch_size,
        "gradient_accumulation_steps": options.grad_accum_steps,
        "gradient_clipping": options.clip_norm if stage else 0.0,  # `parallel/zero.py` clips at stage 0
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": options.optimizer != "adamw",  # which tests/parallel tried
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16", "loss_scale": 1.0},  # static: parallel/loss_scale.py sets it
    }
    if precision == "bf16" and stage:  # DeepSpeed refuses fp32 accumulation at stage 0
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _section(options: Mapping[str, Any]) -> Mapping[str, Any]:
    section = options.get("zero_optimization", {})
    if not isinstance(section, Mapping):
        raise ValueError(f"deepspeed.zero_optimization ({section}) must be a section of options")
    return section
