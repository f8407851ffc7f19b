"""The fp32 master weights and optimizer states of a model by parameter, unpartitioned, at any ZeRO stage.

Stage 0 keeps unpartitioned masters: the parameters in fp32, copies of them in half precision. Stages 1 and 2
keep one flat fp32 partition a rank and parameter group, and link each parameter to its fragment of it
(`_hp_mapping`); stage 3 partitions each parameter evenly over its ranks, the last partition padded. DeepSpeed
links the moments of the first group only, and none before the first step: `_link` does both. An exponential
moving average of the masters is one more state of the optimizer, so that it is partitioned, linked, offloaded
and saved as the others are. The average that is evaluated (`ema`) and that of a teacher (`teacher`) are two
such states.
"""

from collections.abc import Callable, Iterator, Sequence
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

from parallel.experts.names import AVERAGES, EMA, MASTER
from parallel.zero.init import gathered
from parallel.zero.optimizers import fresh_state, moments_of, set_steps, steps_of
from parallel.zero.segments import unpartitioned_masters

# m of average = m * average + (1 - m) * master, by the optimizer steps taken, with the one just taken
Momentum = Callable[[int], float]


class MasterWeights:
    """Reads and writes the master weight and optimizer states of each parameter.

    Every rank that holds a parameter calls `read` of it together; `write` is local.

    Args:
        engine: DeepSpeed's.
        ema: the momentum of the moving average of the masters, which starts at them; None keeps none.
    """

    def __init__(self, engine: Any, ema: Momentum | None = None) -> None:
        self.module: nn.Module = engine.module
        self._optimizer, self._basic = engine.optimizer, engine.basic_optimizer
        self.kinds: tuple[str, ...] = (MASTER, *moments_of(self._basic))
        self._stage, self._ema = int(engine.zero_optimization_stage()), ema
        self._unpartitioned = {} if self._stage else dict(unpartitioned_masters(self._optimizer, self.module))
        self._link()
        if ema is not None:
            self.keep_average(EMA)

    @torch.no_grad()
    def keep_average(self, kind: str) -> None:
        """Keep one more moving average of the masters, which starts at them.

        Args:
            kind: of `AVERAGES` (parallel/experts/names.py).
        """
        assert kind in AVERAGES
        assert kind not in self.kinds
        self.kinds = (*self.kinds, kind)
        for master in self._flat_masters():
            self._basic.state[master].setdefault(kind, master.detach().clone())
        self._link()

    @torch.no_grad()
    def update_average(self, kind: str, momentum: float) -> None:
        """Move an average towards the masters: average = momentum * average + (1 - momentum) * master."""
        for master in self._flat_masters():
            self._basic.state[master][kind].lerp_(master, 1.0 - momentum)

    def flat(self, master: Tensor, kind: str) -> Tensor:
        """The state of one kind of a flat master (`flat_masters`), in its shape."""
        return master.detach() if kind == MASTER else self._basic.state[master][kind]

    def read(self, parameter: nn.Parameter, kinds: Sequence[str] = ()) -> dict[str, Tensor]:
        """The unpartitioned master, moments and average of a parameter, in its shape and fp32.

        A frozen parameter is its own master and average, and its moments are zero.

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
            return self.flat(self._unpartitioned[parameter], kind)
        if kind == MASTER:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def read_local(self, parameter: nn.Parameter) -> dict[str, Tensor] | None:
        """Return what `read` does, as views, if this rank has all of the parameter, else None; local."""
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None or self._stage not in (1, 2):
            return None
        if mapping.lp_fragment_address.numel != parameter.numel():
            return None  # it lies in two partitions
        flat = {kind: mapping.get_hp_fragment(None if kind == MASTER else kind) for kind in self.kinds}
        return {kind: tensor.detach().view(parameter.shape) for kind, tensor in flat.items()}

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """Set what `read` reads, and the parameter's working copy, from unpartitioned fp32 tensors.

        Kinds that `values` does not have are initialised: an average to the master, a moment to zero.
        """
        initial = self._initial(values[MASTER], [kind for kind in self.kinds if kind not in values])
        values = {kind: values[kind] if kind in values else initial[kind] for kind in self.kinds}
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
                self.flat(self._unpartitioned[parameter], kind).copy_(value)
        parameter.copy_(values[MASTER])

    def update_ema(self, step: int) -> None:
        """Move the average that is evaluated, if there is one, after a step that was not skipped.

        Args:
            step: optimizer steps taken, with this one.
        """
        if self._ema is not None:
            self.update_average(EMA, self._ema(step))

    @contextmanager
    def ema_applied(self) -> Iterator[None]:
        """Let the model compute with the moving average; every rank enters and leaves together."""
        own = {
            p: p.detach().clone() for p, master in self._unpartitioned.items() if master is p
        }  # fp32 at stage 0
        self._compute_with(EMA)
        try:
            yield
        finally:
            for parameter, master in own.items():
                parameter.detach().copy_(master)
            self._compute_with(MASTER)

    @property
    def adam_steps(self) -> int:
        """Steps that Adam took, for its bias correction, without those that were skipped."""
        return steps_of(self._basic)

    def set_step(self, step: int) -> None:
        """Set Adam's count of steps."""
        set_steps(self._basic, step)

    def _write_partition(self, parameter: Any, values: dict[str, Tensor]) -> None:
        for kind, value in values.items():
            part = _own_partition(parameter, value)
            if kind == MASTER:
                safe_set_local_fp32_param(parameter, part)
                parameter.ds_tensor.copy_(part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        if (
            parameter.ds_status == ZeroParamStatus.AVAILABLE
        ):  # a small one, which stays gathered between steps
            parameter.data.copy_(values[MASTER])

    def _read_frozen(self, parameter: nn.Parameter, kinds: Sequence[str]) -> dict[str, Tensor]:
        with gathered(parameter):
            value = parameter.detach().float().clone()
        return self._initial(value, kinds)

    @staticmethod
    def _initial(master: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """The values with which an optimizer starts."""
        return {k: master if k in (MASTER, *AVERAGES) else torch.zeros_like(master) for k in kinds}

    @torch.no_grad()
    def _compute_with(self, kind: str) -> None:
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                self._write_working_copy(parameter, self.read(parameter, [kind])[kind])

    def _write_working_copy(self, parameter: Any, value: Tensor) -> None:
        if self._stage < 3:
            parameter.copy_(value)
            return
        parameter.ds_tensor.copy_(_own_partition(parameter, value))
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:
            parameter.data.copy_(value)

    def _flat_masters(self) -> list[Tensor]:
        """The tensors that are the keys of the optimizer's states."""
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [master for group in self._basic.param_groups for master in group["params"]]

    @torch.no_grad()
    def _link(self) -> None:
        """Create the states of every master that has none, as an optimizer does at its first step."""
        for master in self._flat_masters():
            state = self._basic.state[master]
            if not state:
                state.update(fresh_state(self._basic, master))
        if self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()


def _own_partition(parameter: Any, value: Tensor) -> Tensor:
    """This rank's partition of a parameter at stage 3: flat, padded with zeros."""
    size, flat = parameter.ds_tensor.numel(), value.reshape(-1)
    first = parameter.ds_zero_partition_rank * size
    part = flat.new_zeros(size)
    mine = flat[first : first + size]
    part[: mine.numel()] = mine
    return part
