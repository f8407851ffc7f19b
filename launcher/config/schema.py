"""RunConfig: every option of a run, with its default, its unit and its meaning.

The dataclasses say what an option is; `load.py` reads YAML into them and reports every error at
once. No `from __future__ import annotations` here: pydantic resolves the types when it validates.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.config.data_section import DataConfig
from launcher.config.optim_section import OptimConfig
from launcher.config.profile import ProfileConfig
from launcher.config.tracking import TrackingConfig
from parallel.experts.options import ExchangeOptions
from parallel.ranges import LARGEST, WEEK_S, check_ranges
from parallel.ranks.dims import ParallelDims
from parallel.zero.options import Precision, ZeroStage, check_deepspeed
from swin_moe.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """Ending training when the task's metric in evaluation no longer becomes better."""

    # so long without a better value: "5 evaluations", or a duration such as "3 epochs"
    patience: str = "10 evaluations"
    min_delta: float = 0.0  # a value is better if it differs by more than this

    def __post_init__(self) -> None:
        check_ranges("train.early_stop.", self, min_delta=(0, 1e30))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in what pieces and in what precision."""

    duration: str = "300 epochs"  # of the run: epochs, steps or images
    global_batch_size: int = 1024  # images an optimizer step, whatever the number of ranks
    micro_batch_size: int = 128  # images a rank holds at once; the rest is gradient accumulation
    eval_batch_size: int = 128  # images of a rank at once, in evaluation
    precision: Precision = "fp32"  # bf16 and fp16 with fp32 masters; fp16 with a dynamic loss scale
    ema_decay: float = 0.0  # decay a step of a moving average of the weights; 0 keeps none
    # let that decay rise: after t + 1 steps it is 1 - (1 + t / ema_warmup_gamma)^-ema_warmup_power, and at
    # most ema_decay (timm's ModelEmaV3); the average then forgets the initial weights
    ema_warmup: bool = False
    ema_warmup_gamma: float = 1.0  # steps; a larger one makes the decay rise more slowly
    ema_warmup_power: float = 2 / 3  # 2/3 for a million steps or more, 3/4 for shorter runs
    eval_every: str | None = None  # duration between evaluations; the end of the run is always evaluated
    eval_first: bool = False  # evaluate before the first step: what pretrained weights are worth
    # end training when the task's metric no longer becomes better, for example {patience: 5 evaluations}:
    # docs/evaluation.md
    early_stop: EarlyStopConfig | None = None
    max_skipped_steps: int = 10  # steps in a row, not finite or skipped as a spike, that end a run; 0: never
    # a gradient norm beyond this multiple of the running norm is a spike; 0 looks for none: docs/faults.md
    spike_factor: float = 0.0
    spike_action: Literal["log", "skip"] = "log"  # on a spike; skip leaves the step out, on every rank
    moe_load_every: str | None = "50 steps"  # when every expert's load is recorded; the last step always is
    compile: bool = False  # torch.compile block by block
    profile: ProfileConfig | None = None  # steps that torch.profiler records; null: none
    pretrained: str | None = None  # weights to start from, in any format that `swin-moe convert` reads
    # a classifier of another size: strict refuses it, replace puts a new one in its place, FILE (a class map,
    # one class of the weights a line) picks classes
    pretrained_head: str = "strict"
    # what must come from pretrained: nothing; backbone refuses a run without it; all also refuses weights
    # that lack a head of the model, if the task can load its heads
    pretrained_require: Literal["nothing", "backbone", "all"] = "nothing"
    # pretrained is a dense model: each expert starts as a copy of its MLP, with noise of this share of its
    # weights' deviation (0.0 for none)
    upcycle_noise: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            "train.",
            self,
            global_batch_size=(1, 2**20),
            micro_batch_size=(1, 2**16),
            eval_batch_size=(1, 2**16),
            max_skipped_steps=(0, LARGEST),
            spike_factor=(0, 1e30),
            ema_warmup_gamma=(1e-6, 1e9),
            ema_warmup_power=(1e-3, 100),
        )
        for name in ("pretrained", "pretrained_head"):
            if getattr(self, name) == "":
                raise ValueError(f"train.{name} ('') must name a file; leave it out where there is none")
        if self.upcycle_noise is not None and not (0 <= self.upcycle_noise <= 10 and self.pretrained):
            raise ValueError(
                f"train.upcycle_noise ({self.upcycle_noise}) must lie in [0, 10], and needs "
                "train.pretrained: the weights of a dense model"
            )
        if self.spike_factor != 0 and self.spike_factor <= 1:
            raise ValueError(
                f"train.spike_factor ({self.spike_factor}) must be above 1, or 0 to look for none"
            )
        if self.spike_action == "skip" and not self.spike_factor:
            raise ValueError("train.spike_action (skip) needs train.spike_factor (0.0) above 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay ({self.ema_decay}) must lie in [0, 1)")
        if self.ema_warmup and not self.ema_decay:
            raise ValueError("train.ema_warmup (True) needs train.ema_decay (0.0) above 0")

    def grad_accum_steps(self, world_size: int) -> int:
        """Micro-batches of a rank in an optimizer step, rounded down where the sizes do not divide."""
        return self.global_batch_size // (self.micro_batch_size * world_size)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a run is laid over its ranks; none of it changes the result."""

    ep_size: int = 1  # ranks that share one set of experts; divides world_size
    expert_tensor_parallel_size: int = 1  # ranks that share the channels of one expert; divides ep_size
    expert_exchange: ExchangeOptions = field(default_factory=ExchangeOptions)
    zero_stage: ZeroStage = 1  # what is cut over the ranks: 1 optimizer states, 2 + gradients, 3 + parameters
    offload_optimizer: bool = False  # optimizer states to host memory, and the update with them; from stage 1
    collective_timeout_s: float = 600.0  # after which a rank that others wait for is named, and the run ends

    def __post_init__(self) -> None:
        check_ranges(
            "parallel.",
            self,
            ep_size=(1, 2**16),
            expert_tensor_parallel_size=(1, 2**16),
            collective_timeout_s=(5, WEEK_S),
        )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("parallel.offload_optimizer needs parallel.zero_stage of 1, 2 or 3 (got 0)")

    def dims(self, world_size: int) -> ParallelDims:
        """The layout of so many ranks.

        Raises:
            LayoutError: it does not divide.
        """
        return ParallelDims(
            world_size=world_size,
            ep_size=self.ep_size,
            expert_tensor_parallel_size=self.expert_tensor_parallel_size,
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved and how many checkpoints stay."""

    every: str | None = "1 epochs"  # duration between saves; the end of the run is always saved
    keep_last: int = 2  # newest checkpoints that stay
    keep_every: str | None = None  # duration; checkpoints at multiples of it stay for good
    keep_best: int = 0  # checkpoints with the best values of the task's metric stay; 0 keeps none for that
    asynchronous: bool = True  # the step waits for a copy to host memory, a thread writes it
    crash_budget: int = 5  # so many crashes in a row without a new checkpoint refuse a start; 0 never does

    def __post_init__(self) -> None:
        check_ranges(
            "checkpoint.", self, keep_last=(1, LARGEST), keep_best=(0, LARGEST), crash_budget=(0, LARGEST)
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: the root of the YAML file."""

    run_dir: str  # directory that the run writes to
    model: ModelConfig
    data: DataConfig
    # a folder of launcher/tasks, a task of an installed package, or a dotted path such as
    # my_package.task:SPEC; its options are the section of its name (task_sections.py)
    task: str = "classification"
    seed: int = 0  # of initial weights, the order of samples and all random draws
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # further options of DeepSpeed's own configuration
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges("", self, seed=(0, 2**63 - 1))
        check_deepspeed(self.deepspeed)
