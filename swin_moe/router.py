"""Routers: which experts each token goes to, and with what weight.

Legend: T tokens, E experts, k choices a token, C channels.
To add a router: one class with this interface, and one entry in ROUTERS.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.config import MoEConfig
from swin_moe.randomness import fork, normal


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The decision of a router for T tokens, in fp32."""

    gates: Tensor  # (T, k) weight of each choice, differentiable
    expert_index: Tensor  # (T, k) int64, best choice first
    scores: Tensor  # (T, E) softmax over the experts, differentiable


class LinearTopKRouter(nn.Module):
    """Softmax over a linear map, the k best kept (Shazeer et al. 2017; V-MoE, Riquelme et al. 2021, eq. 1).

    In training the logits get normal noise of standard deviation gate_noise / E, from which both choice and
    gates follow. All of it is fp32, whatever the precision of the model. Ties go to the lower expert.
    """

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__()
        self.config, self.site = config, site
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))

    def forward(self, tokens: Tensor, keys: Tensor) -> Routing:
        """Route tokens (T, C) with keys (T,)."""
        moe = self.config
        with torch.autocast(tokens.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.weight.float())  # (T, E)
            if self.training and moe.gate_noise:
                noise = normal(fork(keys, self.site), moe.num_experts)
                logits = logits + noise * (moe.gate_noise / moe.num_experts)
            scores = logits.softmax(dim=-1)
        expert_index = scores.detach().argsort(dim=-1, descending=True, stable=True)[:, : moe.top_k]
        gates = scores.gather(1, expert_index)
        if moe.normalize_gates:
            gates = gates / gates.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).eps)
        return Routing(gates=gates, expert_index=expert_index, scores=scores)


ROUTERS: dict[str, type[LinearTopKRouter]] = {"linear": LinearTopKRouter}
