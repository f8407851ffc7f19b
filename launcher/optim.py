"""Which parameters decay, and the learning rate of every step."""

import math
from typing import Any

from torch import nn

from launcher.schema import OptimConfig
from parallel.tensors import shape_of

NO_DECAY = (
    "bias",
    "relative_position_bias_table",
    "cpb_mlp",
    "logit_scale",
    "absolute_pos_embed",
    "cosine_projector",
    "sim_matrix",
    "router.phi",
)
LR_BATCH = 512  # images that the learning rates of a configuration are for


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The model's parameters in two groups: with and without weight decay.

    No decay for norms and other 1-D parameters of a layer, biases (the experts' too, which are 2-D here) and
    position biases: the rule of the Swin family.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = len(shape_of(parameter)) == 1 or any(part in name for part in NO_DECAY)
        (no_decay if plain else decay).append(parameter)
    common = {"betas": config.betas, "eps": config.eps}
    groups = [
        {"name": "decay", "params": decay, "weight_decay": config.weight_decay, **common},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0, **common},
    ]
    return [group for group in groups if group["params"]]


class CosineSchedule:
    """Linear warm-up, then a half cosine down to min_lr (Loshchilov and Hutter 2017), by optimizer step.

    Args:
        config: learning rates for 512 images; each is scaled by global_batch_size / 512.
        global_batch_size: images an optimizer step.
        warmup_steps: of the linear part, which is a prefix of the whole.
        total_steps: of the run.
    """

    def __init__(
        self, config: OptimConfig, *, global_batch_size: int, warmup_steps: int, total_steps: int
    ) -> None:
        scale = global_batch_size / LR_BATCH
        self.peak, self.start, self.end = (
            scale * lr for lr in (config.base_lr, config.warmup_lr, config.min_lr)
        )
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
