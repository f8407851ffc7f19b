"""The fp32 master weights and Adam moments of a model, whole and by parameter, behind any ZeRO stage.

Stages 1 and 2 keep one flat fp32 partition a rank and parameter group, and link each parameter to its
fragment of it (`_hp_mapping`); stage 0 keeps whole masters: the parameters in fp32, copies of them in bf16.
DeepSpeed links the moments of the first group only, and none before the first step: `_link` does both.
"""

from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (MASTER, *MOMENTS)


class Masters:
    """Reads and writes what an engine's optimizer knows of each parameter.

    Every rank that holds a parameter calls `read` of it together; `write` is local.
    """

    def __init__(self, engine: Any) -> None:
        self.module: nn.Module = engine.module
        self._optimizer = engine.optimizer
        self._adam: torch.optim.Optimizer = engine.basic_optimizer
        self._partitioned = engine.zero_optimization()
        self._whole = {} if self._partitioned else self._whole_masters()
        self._link()

    def read(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The whole master and moments of a parameter, in its own shape and fp32."""
        if self._partitioned:
            moments = {kind: safe_get_full_optimizer_state(parameter, kind) for kind in MOMENTS}
            return {MASTER: safe_get_full_fp32_param(parameter)} | moments
        master = self._whole[parameter]
        return {MASTER: master.detach()} | {kind: self._adam.state[master][kind] for kind in MOMENTS}

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """Set the master and moments of a parameter, and its working copy, from whole fp32 tensors."""
        if self._partitioned:
            parameter.set_full_hp_param(values[MASTER])  # type: ignore[attr-defined]
            for kind in MOMENTS:
                parameter.set_full_hp_param(values[kind], kind)  # type: ignore[attr-defined]
        else:
            master = self._whole[parameter]
            master.copy_(values[MASTER])
            for kind in MOMENTS:
                self._adam.state[master][kind].copy_(values[kind])
        parameter.copy_(values[MASTER])

    def set_step(self, step: int) -> None:
        """Set Adam's count of steps, which its bias correction uses."""
        for state in self._adam.state.values():
            state["step"].fill_(float(step))

    def _whole_masters(self) -> dict[nn.Parameter, Tensor]:
        """Stage 0: each parameter's fp32 master."""
        if not hasattr(self._optimizer, "fp32_groups"):
            return {parameter: parameter for parameter in self.module.parameters()}
        groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
        return {p: master for low, high in groups for p, master in zip(low, high, strict=True)}

    def _link(self) -> None:
        """Give every master that has none its Adam state, as AdamW does at its first step."""
        for group in self._adam.param_groups:
            for master in group["params"]:
                state = self._adam.state[master]
                if not state:
                    state["step"] = torch.zeros((), device=master.device)
                    for kind in MOMENTS:
                        state[kind] = torch.zeros_like(master, memory_format=torch.preserve_format)
        if self._partitioned:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()
