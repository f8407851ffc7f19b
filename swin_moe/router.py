"""Routers: which experts each token goes to, and with what weight.

Legend: T tokens, E experts, k choices a token, C channels.
To add a router: one class with this interface, and one entry in ROUTERS.
"""

import math
from collections.abc import Callable
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


class TopKRouter(nn.Module):
    """Softmax over the experts, the k best kept (Shazeer et al. 2017; V-MoE, Riquelme et al. 2021, eq. 1).

    In training the logits get normal noise of standard deviation gate_noise / E, from which both choice and
    gates follow. All of it is fp32, whatever the precision of the model. Ties go to the lower expert.
    """

    def __init__(self, config: MoEConfig, site: int) -> None:
        super().__init__()
        self.config, self.site = config, site

    def logits(self, tokens: Tensor) -> Tensor:
        """How much each token wants each expert: (T, C) fp32 -> (T, E) fp32."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, keys: Tensor) -> Routing:
        """Route tokens (T, C) with keys (T,)."""
        moe = self.config
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self.logits(tokens.float())  # (T, E)
            if self.training and moe.gate_noise:
                noise = normal(fork(keys, self.site), moe.num_experts)
                logits = logits + noise * (moe.gate_noise / moe.num_experts)
            scores = logits.softmax(dim=-1)
        expert_index = scores.detach().argsort(dim=-1, descending=True, stable=True)[:, : moe.top_k]
        gates = scores.gather(1, expert_index)
        if moe.normalize_gates:
            gates = gates / gates.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).eps)
        return Routing(gates=gates, expert_index=expert_index, scores=scores)


class LinearTopKRouter(TopKRouter):
    """Logits by a linear map without bias."""

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))

    def logits(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (T, E)."""
        return F.linear(tokens, self.weight.float())


class CosineTopKRouter(TopKRouter):
    """Logits by the cosine of a projected token and a vector an expert, over a learned temperature.

    Swin-MoE's second router (Hwang et al. 2022): projection to 256, temperature from 0.5, kept as
    log(1 / temperature) and bounded by 0.01 from below.
    """

    projection = 256
    start = math.log(1.0 / 0.5)
    bound = math.log(1.0 / 0.01)

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)
        self.cosine_projector = nn.Linear(dim, self.projection)
        self.sim_matrix = nn.Parameter(torch.empty(self.projection, config.num_experts))
        self.temperature = nn.Parameter(torch.full((1,), self.start))

    def logits(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (T, E)."""
        weight, bias = self.cosine_projector.weight.float(), self.cosine_projector.bias.float()
        projected = F.normalize(F.linear(tokens, weight, bias), dim=1)
        cosine = projected @ F.normalize(self.sim_matrix.float(), dim=0)
        return cosine * self.temperature.float().clamp(max=self.bound).exp()


ROUTERS: dict[str, Callable[[int, MoEConfig, int], TopKRouter]] = {
    "linear": LinearTopKRouter,
    "cosine": CosineTopKRouter,
}
