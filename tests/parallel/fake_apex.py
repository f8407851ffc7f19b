"""Stands for NVIDIA Apex, which needs a GPU: its interface, its arithmetic in plain torch, and its traps.

Written from Apex's documentation and behaviour: the step is counted in the group; `param_groups_master` is
made at the first call and walked along with the groups ever after; FusedLAMB clips by itself.
"""

import sys
from types import ModuleType
from typing import Any

import torch


class _Fused(torch.optim.Optimizer):
    def _moments(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if len(state) == 0:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).add_(parameter.grad.square(), alpha=1 - beta2)
        first = state["exp_avg"] / (1 - beta1 ** group["step"])
        second = state["exp_avg_sq"] / (1 - beta2 ** group["step"])
        return first / (second.sqrt() + group["eps"]) + group["weight_decay"] * parameter


class FusedAdam(_Fused):
    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8,
        adam_w_mode: bool = True, weight_decay: float = 0.0, amsgrad: bool = False,
    ) -> None:  # fmt: skip
        assert adam_w_mode
        assert not amsgrad
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.masters: list[list[None]] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.masters is None:
            self.masters = [[None for _ in group["params"]] for group in self.param_groups]
        for group, masters in zip(self.param_groups, self.masters, strict=False):
            _ = group["params"][0].device  # an IndexError for an empty group
            group["step"] = group.get("step", 0) + 1
            for parameter, _ in zip(group["params"], masters, strict=False):
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * self._moments(parameter, group))


class FusedLAMB(_Fused):
    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.01, adam_w_mode: bool = True, max_grad_norm: float = 1.0,
        use_nvlamb: bool = False,
    ) -> None:  # fmt: skip
        assert adam_w_mode
        self.max_grad_norm, self.use_nvlamb = max_grad_norm, use_nvlamb
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.stack([p.grad.norm() for p in every]).norm())
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if norm > self.max_grad_norm:
                    parameter.grad.div_(norm / self.max_grad_norm)
                update, ratio = self._moments(parameter, group), 1.0
                if group["weight_decay"] or self.use_nvlamb:
                    ratio = float(parameter.norm() / update.norm())
                parameter.sub_(group["lr"] * ratio * update)


def modules() -> dict[str, ModuleType]:
    """What `import apex` is to find."""
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedAdam, optimizers.FusedLAMB = FusedAdam, FusedLAMB  # type: ignore[attr-defined]
    apex.optimizers = optimizers  # type: ignore[attr-defined]
    return {"apex": apex, "apex.optimizers": optimizers}


def install() -> None:
    """From here on, this process has it."""
    sys.modules |= modules()
