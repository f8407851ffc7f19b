"""The options of an engine, and what a user may add to DeepSpeed's configuration. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from parallel.suggest import suggestion

ZeroStage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "sgd", "lamb", "fused_adam", "fused_lamb"]

DECIDED_BY = {  # DeepSpeed's option -> what decides it here
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "gradient_clipping": "optim.max_grad_norm",
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
    "tensor_parallel": "parallel.expert_tensor_parallel_size",
    "sequence_parallel_size": "the layout, which has no such axis",
    "pipeline": "the layout, which has no such axis",
    "elasticity": "the checkpoint, which loads at any number of ranks",
    "compile": "train.compile",
}
ALLOWED: dict[str, type | tuple[str, ...]] = {  # what of DeepSpeed 0.19.8 makes sense beside ours
    "zero_optimization": dict,
    "zero_force_ds_cpu_optimizer": bool,
    "communication_data_type": ("fp16", "bf16", "fp32"),
    "disable_allgather": bool,
    "aio": dict,
    "comms_logger": dict,
    "flops_profiler": dict,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "steps_per_print": int,
    "dump_state": bool,
    "log_level": ("debug", "info", "warning", "error", "critical"),
    "timers": dict,
    "disable_python_gc": bool,
    "tensorboard": dict,
    "wandb": dict,
    "comet": dict,
    "csv_monitor": dict,
}
KINDS = {bool: "true or false", int: "a whole number", dict: "a section of options"}
MONITORS = {"wandb": "wandb", "comet": "comet_ml"}  # section -> package
DEEPSPEEDS_BUCKET = 500_000_000  # elements of a reduction bucket, by DeepSpeed's default
OVERLAPPING_BUCKET = 25_000_000  # a bucket that is full, and reduced, long before a backward pass has ended


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine works; only `precision`, `optimizer`, `max_grad_norm` and the batch change results.

    Args:
        zero_stage: 0 to 3 (Rajbhandari et al. 2020).
        precision: `bf16` and `fp16` compute in it, with fp32 masters; fp16 with a dynamic loss scale.
        offload_optimizer: keep masters and moments in host memory, and update them there (ZeRO-Offload).
        max_grad_norm: bound of the global gradient norm, every expert counted once; 0 for none.
        micro_batch_size: images a rank and forward pass.
        grad_accum_steps: micro-batches an optimizer step.
        deepspeed: further options of DeepSpeed's configuration.
        optimizer: see parallel/zero/optimizers.py.
    """

    zero_stage: ZeroStage
    precision: Precision
    max_grad_norm: float
    micro_batch_size: int
    grad_accum_steps: int
    offload_optimizer: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    optimizer: OptimizerName = "adamw"


def check_deepspeed(options: Mapping[str, Any]) -> None:
    """Raise ValueError for unknown options of DeepSpeed, and for those that other options here decide."""
    names = [*options, *(f"zero_optimization.{name}" for name in zero_section(options))]
    errors = [
        f"deepspeed.{name} is decided by {DECIDED_BY[name]}; leave it out"
        for name in names
        if name in DECIDED_BY
    ]
    for name in options:
        if name not in DECIDED_BY and name not in ALLOWED:
            hint = suggestion(name, ALLOWED, f"there are {', '.join(ALLOWED)}", prefix="deepspeed.")
            errors.append(f"deepspeed.{name}: no such option; {hint}")
        elif name in ALLOWED and not _is_of(options[name], ALLOWED[name]):
            wanted = ALLOWED[name]
            allowed = f"one of {', '.join(wanted)}" if isinstance(wanted, tuple) else KINDS[wanted]
            errors.append(f"deepspeed.{name} ({options[name]!r}) must be {allowed}")
    if errors:
        raise ValueError("; ".join(errors))


def _is_of(value: Any, kind: type | tuple[str, ...]) -> bool:
    """Whether a value is of a type, or one of some texts."""
    return value in kind if isinstance(kind, tuple) else type(value) is kind


def check_with_deepspeed(options: Mapping[str, Any]) -> None:
    """Raise ValueError for values that DeepSpeed does not accept; imports DeepSpeed where there are any."""
    if not options:
        return
    from parallel.ranks.init import choose_accelerator

    choose_accelerator()
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    for name, package in MONITORS.items():
        if options.get(name, {}).get("enabled") is True and find_spec(package) is None:
            raise ValueError(f"deepspeed.{name}: {package} is not installed; pip install {package}")
    prefix = "deepspeed.zero_optimization"
    try:
        DeepSpeedZeroConfig(**zero_section(options))
        prefix = "deepspeed"
        DeepSpeedConfig({"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, **options})
    except ValidationError as error:
        errors = (f"{'.'.join([prefix, *map(str, e['loc'])])}: {e['msg']}" for e in error.errors())
        raise ValueError("; ".join(errors)) from error
    except (DeepSpeedConfigError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"deepspeed: {error}") from error


def check_precision(precision: Precision) -> None:
    """Raise ValueError where the device of this process cannot train in a precision; imports DeepSpeed."""
    if precision != "fp16":
        return
    from parallel.ranks.init import choose_accelerator

    choose_accelerator()
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        raise ValueError(
            f"train.precision (fp16) needs a device with fp16 instructions, and DeepSpeed finds none on this "
            f"{get_accelerator().device_name()}; set train.precision=bf16"
        )


def bucket_elements(
    deepspeed: Mapping[str, Any], *, overlaps: bool, uneven_elements: int | None = None
) -> int:
    """Elements of a bucket of gradients, which is reduced when it is full.

    DeepSpeed's default holds any Swin completely, so that nothing would be reduced beside the backward pass,
    and takes two buckets of memory for it.

    Args:
        deepspeed: the user's options, which may set `zero_optimization.reduce_bucket_size`.
        overlaps: whether reductions run beside the backward pass, as on GPUs.
        uneven_elements: the most parameters that a rank holds, where ranks hold different numbers of them:
            they would reduce dense gradients in different pieces, so one bucket takes all.
    """
    if uneven_elements is not None:
        return uneven_elements
    default = OVERLAPPING_BUCKET if overlaps else DEEPSPEEDS_BUCKET
    size = zero_section(deepspeed).get("reduce_bucket_size", default)
    return DEEPSPEEDS_BUCKET if size == "auto" else int(size)  # as DeepSpeed takes "auto"


def zero_section(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of `zero_optimization`.

    Raises:
        ValueError: it is no section.
    """
    section = options.get("zero_optimization", {})
    if not isinstance(section, Mapping):
        raise ValueError(f"deepspeed.zero_optimization ({section}) must be a section of options")
    return section
