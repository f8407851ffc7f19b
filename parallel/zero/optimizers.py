"""The optimizers by name, what each keeps of a parameter, and how each counts its steps.

adamw        exp_avg exp_avg_sq    a count in the state of each master, a tensor (offloaded: a number)
lamb fused_* exp_avg exp_avg_sq    a count in each group
sgd          momentum_buffer       none; without momentum it keeps nothing at all
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from parallel.experts.names import MOMENTS, MOMENTUM
from parallel.zero.extensions import OFFLOADED, prepare_extensions
from parallel.zero.lamb import Lamb
from parallel.zero.options import EngineOptions, OptimizerName

INSTALL = (
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation git+https://github.com/NVIDIA/apex"
)


class OptimizerError(ValueError):
    """An optimizer is not installed; the message has the command that installs it."""


def build_optimizer(param_groups: list[dict[str, Any]], options: EngineOptions) -> torch.optim.Optimizer:
    """The optimizer of a run, of groups that hold their own hyper-parameters.

    Raises:
        ExtensionError: the offloaded optimizer cannot be compiled.
        OptimizerError: NVIDIA Apex is not installed.
    """
    if options.optimizer == "sgd":
        return torch.optim.SGD(param_groups)
    if options.optimizer == "lamb":
        return Lamb(param_groups)
    if options.optimizer == "fused_adam":
        return import_apex("fused_adam").FusedAdam(param_groups, adam_w_mode=True)
    if options.optimizer == "fused_lamb":  # whose own clipping, at 1.0, is switched off: the engine clips
        return import_apex("fused_lamb").FusedLAMB(
            param_groups, adam_w_mode=True, max_grad_norm=float("inf"), use_nvlamb=False
        )
    if options.offload_optimizer:
        prepare_extensions(OFFLOADED)
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(param_groups, adamw_mode=True, fp32_optimizer_states=True)
    return torch.optim.AdamW(param_groups, fused=True)


def import_apex(name: OptimizerName) -> ModuleType:
    """`apex.optimizers` of NVIDIA Apex; PyPI's `apex` is an unrelated web toolkit.

    Raises:
        OptimizerError: it does not import; the message has the command that installs it.
    """
    try:
        from apex import optimizers  # type: ignore[import-not-found]
    except ImportError as error:
        raise OptimizerError(
            f"optim.optimizer={name}: NVIDIA Apex does not import ({error}): {INSTALL}"
        ) from error
    return optimizers


def moments_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The kinds of state that an optimizer keeps of a parameter, each of the parameter's shape."""
    if not isinstance(optimizer, torch.optim.SGD):
        return MOMENTS
    return (MOMENTUM,) if any(group["momentum"] for group in optimizer.param_groups) else ()


def steps_of(optimizer: torch.optim.Optimizer) -> int:
    """Steps taken, as bias corrections count them; 0 where none does."""
    location = _counts_in(optimizer)
    if location == "groups":
        return max(int(group.get("step", 0)) for group in optimizer.param_groups)
    if location == "nowhere" or not optimizer.state:
        return 0
    return int(next(iter(optimizer.state.values()))["step"])


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Set the count of steps."""
    location = _counts_in(optimizer)
    for group in optimizer.param_groups if location == "groups" else ():
        group["step"] = steps
    for state in optimizer.state.values() if location in ("tensors", "states") else ():
        state["step"] = torch.full_like(state["step"], steps) if location == "tensors" else steps


def fresh_state(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Any]:
    """The state of a master as the first step of its optimizer makes it."""
    location = _counts_in(optimizer)
    state: dict[str, Any] = {}
    if location in ("tensors", "states"):
        state["step"] = torch.zeros((), device=master.device) if location == "tensors" else 0
    for kind in moments_of(optimizer):
        state[kind] = torch.zeros_like(master, memory_format=torch.preserve_format)
    return state


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Drop every state and count."""
    optimizer.state.clear()
    set_steps(optimizer, 0)


class StepGate:
    """Replaces an optimizer's `step` by one that skips steps and counts each step once.

    DeepSpeed takes a step in parts: each call updates a group or a part of it, at stage 3 with empty groups
    beside it. An optimizer that counts in its groups would count each call (Apex), or keep the first call's
    groups for all (its `param_groups_master`): so it sees groups with parameters only, and the gate restores
    its count.

    Args:
        optimizer: whose `step` is replaced.
        should_step: whether to take the step, called at each part of it; all parts get the same answer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, should_step: Callable[[], bool]) -> None:
        self._optimizer, self._step, self._should_step = optimizer, optimizer.step, should_step
        self._taken = 0
        optimizer.step = self  # type: ignore[assignment, method-assign]

    def begin(self) -> None:
        """Start a step; only a count in the groups has to be saved, which is on the host."""
        if _counts_in(self._optimizer) == "groups":
            self._taken = steps_of(self._optimizer)

    def __call__(self) -> None:
        """Take one part of the step, or skip it."""
        if not self._should_step():
            return
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [group for group in groups if group["params"]]
        if _counts_in(self._optimizer) == "groups":
            set_steps(self._optimizer, self._taken)
        self._step()
        self._optimizer.param_groups = groups


def _counts_in(optimizer: torch.optim.Optimizer) -> Literal["tensors", "states", "groups", "nowhere"]:
    if isinstance(optimizer, torch.optim.SGD):
        return "nowhere"
    if isinstance(optimizer, torch.optim.AdamW):
        return "tensors"
    return "states" if type(optimizer).__name__ == "DeepSpeedCPUAdam" else "groups"
