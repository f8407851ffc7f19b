"""What changes with the optimizer step: the learning rate, and the decay of the moving average.

The learning rate has a linear warm-up, then one of five shapes:

    cosine     half a cosine from the peak to min_lr, over the steps after the warm-up (Loshchilov 2017)
    linear     a straight line from the peak to `linear_end` of it, over the steps after the warm-up
    poly       from the peak to min_lr by (1 - t)^poly_power, t from 0 at the first step to 1 at the end
               (Chen et al. 2018, DeepLab, section 4.1)
    step       x decay_rate every `decay_every`, counted from the run's first step
    multistep  x decay_rate at each duration of `decay_at`, counted from the run's first step

As in the Swin family's recipes, the warm-up comes before the first two and hides the beginning of the others.
With `warmup_ratio` it multiplies the shape instead, which then runs from the first step, as in the recipes of
segmentation and video.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher.config.schema import OptimConfig, TrainConfig

if TYPE_CHECKING:  # it imports DeepSpeed
    from parallel.zero.master_weights import Momentum

LR_BATCH = 512  # images that the learning rates of a configuration are for


class Schedule:
    """Learning rate by optimizer step.

    Args:
        config: learning rates for 512 images; each is scaled by global_batch_size / 512.
        global_batch_size: images an optimizer step.
        total_steps: of the run.
        steps: the optimizer steps of a duration.
    """

    def __init__(
        self,
        config: OptimConfig,
        *,
        global_batch_size: int,
        total_steps: int,
        steps: Callable[[str], int],
    ) -> None:
        scale = global_batch_size / LR_BATCH
        self.peak, self.start, self.end = (
            scale * lr for lr in (config.base_lr, config.warmup_lr, config.min_lr)
        )
        self.warmup_steps, self.total_steps = steps(config.warmup), total_steps
        self._warmup_ratio, self._power = config.warmup_ratio, config.poly_power
        self._linear_end, self._decay_rate = config.linear_end, config.decay_rate
        self._decay_every = steps(config.decay_every) if config.schedule == "step" else 1
        self._decay_at = sorted(steps(duration) for duration in config.decay_at)
        self._shape: Callable[[int], float] = getattr(self, f"_{config.schedule}")

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        if step >= self.warmup_steps:
            return self._shape(step)
        rise = step / self.warmup_steps
        if self._warmup_ratio is None:
            return self.start + (self.peak - self.start) * rise
        return self._shape(step) * (1 - (1 - rise) * (1 - self._warmup_ratio))

    def _progress(self, step: int) -> float:
        """How much of what follows the warm-up is done, or of the run if they are multiplied: 0 to 1."""
        start = self.warmup_steps if self._warmup_ratio is None else 0
        return min(1.0, (step - start) / max(1, self.total_steps - start))

    def _cosine(self, step: int) -> float:
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * self._progress(step))) / 2

    def _linear(self, step: int) -> float:
        return self.peak * (1 - (1 - self._linear_end) * self._progress(step))

    def _poly(self, step: int) -> float:
        rest = max(0.0, 1 - step / self.total_steps)
        return self.end + (self.peak - self.end) * rest**self._power

    def _step(self, step: int) -> float:
        return self.peak * self._decay_rate ** (step // self._decay_every)

    def _multistep(self, step: int) -> float:
        return self.peak * self._decay_rate ** bisect_right(self._decay_at, step)


def ema_momentum(config: TrainConfig) -> "Momentum | None":
    """The decay of the moving average by optimizer steps taken; None keeps no average.

    The warm-up is that of timm's `ModelEmaV3`: min(ema_decay, 1 - (1 + t / gamma)^-power) after t + 1 steps.
    So the average is the weights after the first step, and forgets the weights before the training.
    """
    decay, gamma, power = config.ema_decay, config.ema_warmup_gamma, config.ema_warmup_power
    if not decay:
        return None
    if not config.ema_warmup:
        return lambda step: decay
    return lambda step: min(decay, 1 - (1 + (step - 1) / gamma) ** -power)
