"""A DeepSpeed engine whose gradients, clip norm and states are right beside our own experts.

What DeepSpeed 0.19.8 needs for that, and where it goes wrong silently (tests/parallel hold both):
- it has to know the experts: parallel/zero/experts.py;
- at stage 0 it averages rank-local norms (runtime/utils.py: clip_grad_norm_), so we clip there; nor does it
  skip a step there whose norm is not finite, or not on every rank, so we do that too: at every stage a
  `StepGate` (parallel/zero/optimizers.py), which knows the norm, replaces the optimizer's own step;
- the model's output must be a tuple, list or dict of tensors: its backward hooks hang on them, and without
  them stage 1 in bf16 counts the first micro-batches of a step several times;
- at stage 0 in bf16, and at stage 3, it takes a step on zero gradients while it starts, which decays the
  weights and counts (initialize_optimizer_states); a learning rate of 0 and a fresh state undo that;
- at stages 1 and 2 it links the Adam states of the first parameter group only;
- its buckets of gradients are full after so many elements, dense and expert ones together: ranks that hold
  uneven experts would reduce dense gradients in different pieces, so there all go into one bucket;
- on the CPU it would compile and attach a shared-memory collective whose segments and build lock two runs on
  one machine fight over; gloo serves instead.
Gradients need no scaling by hand: every stage divides by the world size.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from parallel.experts.names import shape_of
from parallel.experts.placement import experts_of
from parallel.ranks.collectives import gather_objects, sum_over
from parallel.ranks.host import read, send
from parallel.ranks.mesh import Mesh
from parallel.zero.deepspeed_config import deepspeed_config
from parallel.zero.dtypes import DTYPES
from parallel.zero.experts import declare_experts
from parallel.zero.init import cast_partitions
from parallel.zero.lamb import Lamb
from parallel.zero.norm import read_norm_once
from parallel.zero.optimizers import StepGate, build_optimizer, reset_state
from parallel.zero.options import EngineOptions
from parallel.zero.segments import segments_of
from parallel.zero.start import start_deepspeed

START, FACTOR, WINDOW, LOWEST = 2.0**16, 2.0, 1000, 1.0  # of the loss scale


class Engine:
    """One model under ZeRO: forward, backward and step of micro-batches, and access to what is partitioned.

    A step whose global gradient norm is not finite is skipped, on all ranks alike; so is one that `accept`
    rejects. Then master weights, moments and the optimizer's step count do not change.

    Raises ExtensionError where the offloaded optimizer cannot be compiled, OptimizerError where Apex is not.

    Args:
        model: on its device; its expert parameters are marked.
        param_groups: of the optimizer, each with a `name` and its hyper-parameters; `step` gives the
            learning rate, which a group's `lr_scale` multiplies.
        mesh: the layout.
        options: the rest.
        accept: whether to take a step, called once a step with its finite norm, the same on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        param_groups: list[dict[str, Any]],
        mesh: Mesh,
        options: EngineOptions,
        accept: Callable[[float], bool] | None = None,
    ) -> None:
        self.mesh, self.options = mesh, options
        self._parameters = list(model.parameters())
        self._norm, self._accept = 0.0, accept  # the norm is on the host, read once a step
        self.loss_scale = LossScale() if options.precision == "fp16" else None
        self._is_taken: bool | None = True  # whether the current step is taken; None: not decided yet
        start_deepspeed()
        read_norm_once()
        if declare_experts(model, mesh, options.zero_stage):
            param_groups = split_params_into_different_moe_groups_for_optimizer(param_groups)
            param_groups = [group for group in param_groups if group["params"]]
        cast_partitions(model, DTYPES[options.precision])
        sizes = set(gather_objects(sum(shape_of(p).numel() for p in self._parameters)))
        uneven = max(sizes) if len(sizes) > 1 else None
        optimizer = build_optimizer([{**group, "lr": 0.0} for group in param_groups], options)
        with contextlib.redirect_stdout(io.StringIO()):  # its bf16 optimizer prints the memory of each group
            self.deepspeed, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=deepspeed_config(options, mesh.dims.world_size, uneven),
                dist_init_required=False,
            )
        reset_state(optimizer)  # the empty step
        if isinstance(optimizer, Lamb):
            optimizer.segments = segments_of(self.deepspeed, mesh)
        self._gate = StepGate(optimizer, self._should_step)

    def __call__(self, *args: Any) -> Any:
        """Run the model's forward."""
        return self.deepspeed(*args)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.deepspeed.module

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self.deepspeed.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss: scalar; the last of a step reduces it."""
        if self.loss_scale:
            self.deepspeed.optimizer.loss_scale = self.loss_scale.value
            if self.options.zero_stage == 0:  # where DeepSpeed's engine takes the scale out, but not in
                loss = loss.float() * self.loss_scale.value
        self.deepspeed.backward(loss)

    def step(self, lr: float) -> None:
        """Close a micro-batch; after the last of a step, clip and update the weights."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        last = self.ends_step
        if last:
            self._is_taken = None
            self._gate.begin()
            if self.options.zero_stage == 0:
                self._clip()
        self.deepspeed.step()
        if self._is_taken is None and self.options.zero_stage:  # DeepSpeed skipped the step before the gate
            self._norm = math.inf
        if last and self.loss_scale:
            self.loss_scale.update(overflowed=math.isinf(self.grad_norm))

    @property
    def ends_step(self) -> bool:
        """Whether the micro-batch under way is the last of its step."""
        return bool(self.deepspeed.is_gradient_accumulation_boundary())

    @property
    def grad_norm(self) -> float:
        """L2 norm of the last step's global gradient before clipping; inf where it was not finite."""
        return self._norm if math.isfinite(self._norm) else math.inf

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped: its gradient was not finite, or it was not accepted."""
        return not self._is_taken

    def state_dict(self) -> dict[str, Any]:
        """The state besides the master weights: JSON-able, the same on all ranks and layouts."""
        return {"loss_scale": self.loss_scale.state_dict()} if self.loss_scale else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; that of another precision is ignored."""
        if self.loss_scale and "loss_scale" in state:
            self.loss_scale.load_state_dict(state["loss_scale"])

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """This rank's unpartitioned gradient of a parameter, after the last backward pass of a step.

        Every rank that holds the parameter calls it together.
        """
        return safe_get_full_grad(parameter) / (self.loss_scale.value if self.loss_scale else 1.0)

    @torch.no_grad()
    def _clip(self) -> None:
        """Stage 0: clip reduced gradients in place by their global norm, unless it is not finite."""
        gradients = [(experts_of(p) is not None, p.grad) for p in self._parameters if p.grad is not None]
        squares = torch.zeros(2, device=self._parameters[0].device)  # of dense parameters, of our experts
        for is_expert, gradient in gradients:
            squares[int(is_expert)] += gradient.float().square().sum()
        sum_over(squares[1:], self.mesh.ep_group)
        scale = self.loss_scale.value if self.loss_scale else 1.0
        norm = squares.sum().sqrt() / scale
        self._norm = float(read(norm))
        bound = self.options.max_grad_norm
        if bound > 0 and math.isfinite(self._norm):
            for _, gradient in gradients:
                gradient.mul_((bound / (norm + 1e-6)).clamp(max=1.0))

    def _should_step(self) -> bool:
        """Whether to take this step: decided at the first of its parts, alike on all ranks."""
        if self._is_taken is None:
            if self.options.zero_stage:
                self._norm = _on_host(self.deepspeed.optimizer._global_grad_norm)
            self._is_taken = math.isfinite(self._norm) and self._is_accepted()
        return self._is_taken

    def _is_accepted(self) -> bool:
        return self._accept is None or self._accept(self._agreed(self._norm))

    def _agreed(self, norm: float) -> float:
        """The norm of rank 0: ranks whose norms differ in the last bit must not decide differently."""
        own = torch.tensor(norm if self.mesh.is_first else 0.0, dtype=torch.float64)
        return float(read(sum_over(send(own, self.deepspeed.device))))


def _on_host(norm: Tensor | float) -> float:
    return float(read(norm)) if isinstance(norm, Tensor) else float(norm)


class LossScale:
    """The dynamic loss scale of fp16 (Micikevicius et al. 2018, section 3.2), the same at every ZeRO stage.

    It is halved when a step overflowed and doubled after `WINDOW` steps that did not. DeepSpeed's own scalers
    count differently at stage 0 and above, so that a run's scale would depend on its stage; here its static
    scaler gets the scale of each step.
    """

    def __init__(self) -> None:
        self.value, self._good_steps = START, 0

    def update(self, *, overflowed: bool) -> None:
        """Count a step; all ranks pass the same."""
        if overflowed:
            self.value, self._good_steps = max(LOWEST, self.value / FACTOR), 0
            return
        self._good_steps += 1
        if self._good_steps == WINDOW:
            self.value, self._good_steps = self.value * FACTOR, 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        self.value, self._good_steps = float(state["value"]), int(state["good_steps"])
