"""OptimConfig: the optimizer and the loss of a run. Part of schema.py.

No `from __future__ import annotations` here: pydantic resolves the types when it validates.
"""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges
from parallel.zero.options import OptimizerName


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
    min_lr: float = 5e-6  # where cosine and poly end, for 512 images
    warmup: str = "20 epochs"  # duration of the linear rise from warmup_lr to base_lr
    # the warm-up multiplies the schedule, by a factor that rises linearly from this to 1; the schedule then
    # runs from the first step, and warmup_lr does not count. null: the rise from warmup_lr
    warmup_ratio: float | None = None
    # of the learning rate after the warm-up: launcher/training/schedules.py
    schedule: Literal["cosine", "linear", "poly", "step", "multistep"] = "cosine"
    linear_end: float = 0.01  # of the linear schedule: the last learning rate over the peak
    poly_power: float = 1.0  # of the poly schedule
    decay_every: str = "30 epochs"  # duration between two decays of the step schedule
    decay_at: tuple[str, ...] = ()  # durations from the run's start, of the multistep schedule
    decay_rate: float = 0.1  # what step and multistep multiply the learning rate by
    freeze: tuple[str, ...] = ()  # names of parameters, such as "layers.0.*"; or experts, moe, backbone
    weight_decay: float = 0.05  # of the parameters that decay_rule names
    # swin: weight matrices alone, as in the classification of the Swin family. dense: everything but position
    # biases and the backbone's norms, as in its segmentation and detection: docs/recipes.md
    decay_rule: Literal["swin", "dense"] = "swin"
    layer_decay: float = 1.0  # what a layer's learning rate is of that of the layer after it (fine-tuning)
    # what the backbone's learning rate is of that of the heads, beside layer_decay: 0.1 in recipes of video
    backbone_lr_scale: float = 1.0
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
            poly_power=(0.01, 100),
            eps=(1e-30, 1),  # 0 would divide zero by zero where a gradient is zero
            max_grad_norm=(0, 1e30),
        )
        if (self.schedule == "multistep") != bool(self.decay_at):
            raise ValueError(
                f"optim.decay_at ({list(self.decay_at)}) belongs to optim.schedule=multistep (got "
                f"{self.schedule}): set both"
            )
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"optim.warmup_ratio ({self.warmup_ratio}) must lie in [0, 1]")
        for name in ("linear_end", "decay_rate", "layer_decay", "backbone_lr_scale"):
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
