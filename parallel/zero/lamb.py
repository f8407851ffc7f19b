"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", algorithm 2) under any ZeRO stage.

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
    u = r + decay w                      w = w - lr |w| / |u| u

The trust ratio |w| / |u| is of one complete tensor, and of one unsliced expert: `segments.py` sums the
norms where ranks hold parts of it. As in the authors' code and in NVIDIA Apex's, a tensor without
weight decay (biases, norms) keeps a ratio of 1, and so does one whose norm or update is zero.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from parallel.zero.segments import Segments


class Lamb(torch.optim.Optimizer):
    """LAMB; the steps taken are counted in each group's `step`.

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        betas: of the two averages.
        eps: added to the root of the second.
        weight_decay: decoupled; 0 turns the trust ratio off.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        )
        self.segments: dict[Tensor, Segments] = {}  # of a parameter that is not one complete tensor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; all that hold parts of a tensor do it together."""
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), decay = self.state[parameter], group["betas"], group["weight_decay"]
        for kind in ("exp_avg", "exp_avg_sq"):
            if kind not in state:
                state[kind] = torch.zeros_like(parameter)
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2 ** group["step"])).sqrt_().add_(group["eps"])
        update = (first / (1 - beta1 ** group["step"])).div_(root).add_(parameter, alpha=decay)
        if decay:
            update = self._trusted(parameter, update)
        parameter.add_(update, alpha=-group["lr"])

    def _trusted(self, parameter: Tensor, update: Tensor) -> Tensor:
        """The update by the trust ratio of each tensor."""
        segments = self.segments.get(parameter) or Segments([parameter.numel()], [0], 1)
        flat = update.reshape(-1)
        length, change = segments.norms(parameter.reshape(-1), flat)
        ratio = torch.where((length > 0) & (change > 0), length / change, 1.0)
        return (flat * segments.spread(ratio.to(flat.dtype))).view(parameter.shape)
