"""RunConfig: every option of a run, with its default, its unit and its meaning.

The dataclasses say what an option is; `load.py` reads YAML into them and reports every error at
once. No `from __future__ import annotations` here: pydantic resolves the types when it validates.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data_shards.augment.options import AugmentConfig
from data_shards.errors import DataError
from data_shards.format.tar_names import names_tars
from data_shards.order.weighted import TrainSet, mixture
from launcher.config.profile import ProfileConfig
from launcher.config.tracking import TrackingConfig
from parallel.experts.options import ExchangeOptions
from parallel.ranges import LARGEST, WEEK_S, check_ranges
from parallel.ranks.dims import ParallelDims
from parallel.zero.options import OptimizerName, Precision, ZeroStage, check_deepspeed
from swin_moe.config import ModelConfig

SET_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
RESERVED = ("ema",)  # of the records of moving averages


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are, and the picture that the model sees."""

    # directory of shards with a manifest.json (`swin-moe shards pack` writes it), or its URL: docs/shards.md;
    # tars of others without one, such as /data/x/{000000..000146}.tar; or several sets, each with its weight
    train: str | dict[str, TrainSet]
    # shards with a manifest.json, or their URL; or several by name, all evaluated, of which the first is what
    # runs are compared by; null: training without evaluation
    val: str | dict[str, str] | None
    # map labels of data.val, and of the training sets after the first, by name to the classes that are
    # trained: docs/shards.md
    match_classes: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random resized crop, as a share of the image
    # width over height of that crop in the source image, as in torchvision; model.image_size does not matter
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip_probability: float = 0.5  # of mirroring left to right, in training
    # at evaluation an image is scaled until it covers model.image_size / eval_crop and its centre is cut out;
    # 1.0 resizes the whole image, changing its aspect ratio
    eval_crop: float = 0.875
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # red, green, blue in 0 ... 1; subtracted
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # red, green, blue in 0 ... 1; divides the rest
    augment: AugmentConfig | None = None  # on the device, in training; {} is Swin's recipe
    decode_threads: int = 2  # of a rank
    fetch_threads: int = 0  # of a rank, for slow storage; 0 lets the decode threads read
    bad_samples: Literal["replace", "stop"] = "replace"  # in training: by the next healthy sample, or stop
    retry_s: float = 300.0  # reading is tried again for so long after an I/O error
    cache: str | None = None  # directory on a node-local disk for whole shards, for example $SLURM_TMPDIR
    cache_gib: float = 0.0  # the most that all ranks of a node put into data.cache

    def __post_init__(self) -> None:
        check_ranges(
            "data.",
            self,
            crop_scale=(0, 1),
            crop_ratio=(0.01, 100),
            decode_threads=(1, 256),
            fetch_threads=(0, 1024),
            flip_probability=(0, 1),
            eval_crop=(0.1, 1),
            mean=(0, 1),
            std=(1e-3, 1e3),
            retry_s=(1, WEEK_S),
            cache_gib=(0, 2**20),
        )
        self._check_sets()
        if (self.cache is None) != (self.cache_gib == 0):
            raise ValueError(
                f"data.cache ({self.cache}) and data.cache_gib ({self.cache_gib}) belong together: set both"
            )
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.{name} ([{low}, {high}]) must be two numbers, 0 < low <= high")

    @property
    def train_places(self) -> dict[str, str]:
        """The training sets by what messages call their options."""
        if isinstance(self.train, str):
            return {"data.train": self.train}
        return {f"data.train.{name}": one.path for name, one in self.train.items()}

    @property
    def val_places(self) -> dict[str, str]:
        """The validation sets by what messages call their options, the first one first; none without any."""
        if self.val is None:
            return {}
        if isinstance(self.val, str):
            return {"data.val": self.val}
        return {f"data.val.{name}": place for name, place in self.val.items()}

    @property
    def trains_on_tars(self) -> bool:
        """Whether data.train is tars without a manifest."""
        return isinstance(self.train, str) and names_tars(self.train)

    def _check_sets(self) -> None:
        """Names and weights of sets, and where tars without a manifest may be read."""
        for option, sets in {"data.train": self.train, "data.val": self.val}.items():
            if isinstance(sets, dict):
                _check_names(option, sets)
        if not isinstance(self.train, str):
            try:
                mixture(self.train, [1] * len(self.train))
            except DataError as error:
                raise ValueError(f"data.train.{error}") from None
        exact = "evaluation counts every image once"
        reasons = dict.fromkeys(self.val_places, exact)
        if not self.trains_on_tars:
            reasons |= dict.fromkeys(self.train_places, "a mixture has exact shares of its sets")
        for option, place in {**self.train_places, **self.val_places}.items():
            if option in reasons and names_tars(place):
                raise ValueError(
                    f"{option} ({place}) must be shards with a manifest, as {reasons[option]}; "
                    "`swin-moe shards index` writes it"
                )


def _check_names(option: str, sets: Mapping[str, object]) -> None:
    """Names of sets are parts of the names of metrics, of options and of files."""
    if not sets:
        raise ValueError(f"{option} ({{}}) must name at least one set")
    for name in sets:
        if not SET_NAME.fullmatch(name) or name in RESERVED:
            reserved = f", and not {' or '.join(RESERVED)}"
            raise ValueError(
                f"{option} ({name!r}): a set's name has letters, digits, - and _ alone{reserved}"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule and what bounds a step.

    `base_lr`, `warmup_lr` and `min_lr` are for 512 images: each is multiplied by global_batch_size / 512.
    Durations are written "20 epochs", "500 steps" or "1000000 images".
    """

    # fused_adam and fused_lamb are NVIDIA Apex's, where it is installed: docs/engine.md
    optimizer: OptimizerName = "adamw"
    momentum: float = 0.9  # of sgd, Nesterov's
    base_lr: float = 5e-4  # peak learning rate for 512 images; times global_batch_size / 512
    warmup_lr: float = 5e-7  # where the warm-up starts, for 512 images
    min_lr: float = 5e-6  # where the cosine ends, for 512 images
    warmup: str = "20 epochs"  # duration of the linear rise from warmup_lr to base_lr
    # of the learning rate after the warm-up: launcher/training/schedules.py
    schedule: Literal["cosine", "linear", "step", "multistep"] = "cosine"
    linear_end: float = 0.01  # of the linear schedule: the last learning rate over the peak
    decay_every: str = "30 epochs"  # duration between two decays of the step schedule
    decay_at: tuple[str, ...] = ()  # durations from the run's start, of the multistep schedule
    decay_rate: float = 0.1  # what step and multistep multiply the learning rate by
    freeze: tuple[str, ...] = ()  # names of parameters, such as "layers.0.*"; or experts, moe, backbone
    weight_decay: float = 0.05  # of weight matrices; biases and norms have none
    layer_decay: float = 1.0  # what a layer's learning rate is of that of the layer after it (fine-tuning)
    betas: tuple[float, float] = (0.9, 0.999)  # of all optimizers but sgd
    eps: float = 1e-8  # of all optimizers but sgd
    max_grad_norm: float = 5.0  # of the global gradient, every expert counted once; 0 turns clipping off
    # of a classifier: cross_entropy of a softmax over the classes, or bce, the binary cross-entropy of each
    # class by itself: docs/recipes.md
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: float = 0.1  # share of a target's probability that all classes have equally
    # of bce: a class whose smoothed and mixed probability is above this is a target (1), any other is none
    # (0); null takes the probabilities as they are
    bce_target_threshold: float | None = None
    bce_sum_classes: bool = False  # of bce: add the losses of an image's classes instead of their mean

    def __post_init__(self) -> None:
        rate = (0, 1e9)
        check_ranges(
            "optim.",
            self,
            base_lr=rate,
            warmup_lr=rate,
            min_lr=rate,
            weight_decay=(0, 1000),
            eps=(1e-30, 1),  # 0 would divide zero by zero where a gradient is zero
            max_grad_norm=(0, 1e30),
        )
        if (self.schedule == "multistep") != bool(self.decay_at):
            raise ValueError(
                f"optim.decay_at ({list(self.decay_at)}) belongs to optim.schedule=multistep (got "
                f"{self.schedule}): set both"
            )
        for name in ("linear_end", "decay_rate", "layer_decay"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"optim.{name} ({value}) must lie in (0, 1]")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas ({list(self.betas)}) must lie in [0, 1)")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum ({self.momentum}) must lie in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"optim.label_smoothing ({self.label_smoothing}) must lie in [0, 1)")
        self._check_bce()

    def _check_bce(self) -> None:
        threshold = self.bce_target_threshold
        for name, is_set in {
            "bce_target_threshold": threshold is not None,
            "bce_sum_classes": self.bce_sum_classes,
        }.items():
            if is_set and self.loss != "bce":
                value = getattr(self, name)
                raise ValueError(f"optim.{name} ({value}) needs optim.loss=bce (got {self.loss})")
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(f"optim.bce_target_threshold ({threshold}) must lie in [0, 1)")


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
