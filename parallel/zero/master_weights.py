"""The fp32 masters and optimizer states of a model, whole and by parameter, behind any ZeRO stage.

Stage 0 keeps whole masters: the parameters in fp32, copies of them in half precision. Stages 1 and 2 keep one
flat fp32 partition a rank and parameter group, and link each parameter to its fragment of it (`_hp_mapping`);
stage 3 cuts each parameter evenly over its holders, the last part padded. DeepSpeed links the moments of the
first group only, and none before the first step: `_link` does both. An exponential moving average of the
masters is one more of the optimizer's states, so it is cut, linked, offloaded and saved as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from parallel.experts.names import EMA, MASTER
from parallel.zero.init import gathered
from parallel.zero.optimizers import fresh_state, moments_of, set_steps, steps_of


class MasterWeights:
    """Reads and writes what an engine's optimizer knows of each parameter.

    Every rank that holds a parameter calls `read` of it together; `write` is local.

    Args:
        engine: DeepSpeed's.
        ema_decay: of the moving average of the masters, which starts at them; 0 keeps none.
    """

    def __init__(self, engine: Any, ema_decay: float = 0.0) -> None:
        self.module: nn.Module = engine.module
        self._optimizer, self._basic = engine.optimizer, engine.basic_optimizer
        self.kinds = (MASTER, *moments_of(self._basic), *((EMA,) if ema_decay else ()))
        self._stage, self._ema_decay = int(engine.zero_optimization_stage()), ema_decay
        self._whole = {} if self._stage else self._whole_masters()
        self._link()

    def read(self, parameter: nn.Parameter, kinds: Sequence[str] = ()) -> dict[str, Tensor]:
        """The whole master, moments and average of a parameter, in its own shape and fp32.

        A frozen one is its own master and average, and its moments are zero.

        Args:
            parameter: of the model.
            kinds: of `self.kinds`, all by default.
        """
        kinds = kinds or self.kinds
        if not parameter.requires_grad:
            return self._read_frozen(parameter, kinds)
        return {kind: self._read(parameter, kind) for kind in kinds}

    def _read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if not self._stage:
            master = self._whole[parameter]
            return master.detach() if kind == MASTER else self._basic.state[master][kind]
        if kind == MASTER:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def read_local(self, parameter: nn.Parameter) -> dict[str, Tensor] | None:
        """What `read` gives, as views, where this rank's partition holds all of it; asks no other rank."""
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None or self._stage not in (1, 2):
            return None
        if mapping.lp_fragment_address.numel != parameter.numel():
            return None  # the boundary of two partitions goes through it
        flat = {kind: mapping.get_hp_fragment(None if kind == MASTER else kind) for kind in self.kinds}
        return {kind: tensor.detach().view(parameter.shape) for kind, tensor in flat.items()}

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """Set what `read` reads, and the parameter's working copy, from whole fp32 tensors.

        What `values` does not have starts anew: an average at the master, a moment at zero.
        """
        anew = self._anew(values[MASTER], [kind for kind in self.kinds if kind not in values])
        values = {kind: values[kind] if kind in values else anew[kind] for kind in self.kinds}
        if not parameter.requires_grad:
            self._write_working_copy(parameter, values[MASTER])
            return
        if self._stage == 3:
            self._write_partition(parameter, values)
            return
        for kind, value in values.items():
            if self._stage:
                parameter.set_full_hp_param(value, None if kind == MASTER else kind)  # type: ignore[attr-defined]
            else:
                master = self._whole[parameter]
                (master if kind == MASTER else self._basic.state[master][kind]).copy_(value)
        parameter.copy_(values[MASTER])

    @torch.no_grad()
    def update_ema(self) -> None:
        """After a step that was taken: move the average towards the masters."""
        if self._ema_decay:
            for master in self._flat_masters():
                self._basic.state[master][EMA].lerp_(master, 1.0 - self._ema_decay)

    @contextmanager
    def ema_applied(self) -> Iterator[None]:
        """Within it, the model computes with the moving average; every rank enters and leaves it together."""
        own = {p: p.detach().clone() for p, master in self._whole.items() if master is p}  # fp32 at stage 0
        self._compute_with(EMA)
        try:
            yield
        finally:
            for parameter, master in own.items():
                parameter.detach().copy_(master)
            self._compute_with(MASTER)

    @property
    def adam_steps(self) -> int:
        """Steps that Adam took, which its bias correction uses; those that were skipped do not count."""
        return steps_of(self._basic)

    def set_step(self, step: int) -> None:
        """Set Adam's count of steps."""
        set_steps(self._basic, step)

    def _write_partition(self, parameter: Any, values: dict[str, Tensor]) -> None:
        for kind, value in values.items():
            part = _own_part(parameter, value)
            if kind == MASTER:
                safe_set_local_fp32_param(parameter, part)
                parameter.ds_tensor.copy_(part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # a small one, which stays whole between steps
            parameter.data.copy_(values[MASTER])

    def _read_frozen(self, parameter: nn.Parameter, kinds: Sequence[str]) -> dict[str, Tensor]:
        with gathered(parameter):
            value = parameter.detach().float().clone()
        return self._anew(value, kinds)

    @staticmethod
    def _anew(master: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """What an optimizer starts with."""
        return {kind: master if kind in (MASTER, EMA) else torch.zeros_like(master) for kind in kinds}

    @torch.no_grad()
    def _compute_with(self, kind: str) -> None:
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                self._write_working_copy(parameter, self.read(parameter, [kind])[kind])

    def _write_working_copy(self, parameter: Any, value: Tensor) -> None:
        if self._stage < 3:
            parameter.copy_(value)
            return
        parameter.ds_tensor.copy_(_own_part(parameter, value))
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:
            parameter.data.copy_(value)

    def _whole_masters(self) -> dict[nn.Parameter, Tensor]:
        """Stage 0: each parameter's fp32 master."""
        if not hasattr(self._optimizer, "fp32_groups"):
            return {parameter: parameter for parameter in self.module.parameters()}
        groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
        return {p: master for low, high in groups for p, master in zip(low, high, strict=True)}

    def _flat_masters(self) -> list[Tensor]:
        """The tensors that the optimizer knows its states by."""
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [master for group in self._basic.param_groups for master in group["params"]]

    @torch.no_grad()
    def _link(self) -> None:
        """Give every master that has none its states, as an optimizer does at its first step."""
        for master in self._flat_masters():
            state = self._basic.state[master]
            if not state:
                state.update(fresh_state(self._basic, master))
            if self._ema_decay and EMA not in state:
                state[EMA] = master.detach().clone()
        if self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()


def _own_part(parameter: Any, whole: Tensor) -> Tensor:
    """This rank's part of a parameter that stage 3 cuts: flat, padded with zeros."""
    size, flat = parameter.ds_tensor.numel(), whole.reshape(-1)
    first = parameter.ds_zero_partition_rank * size
    part = flat.new_zeros(size)
    mine = flat[first : first + size]
    part[: mine.numel()] = mine
    return part
