"""Routers in which every token chooses its k best experts: by a softmax, or by sigmoids and a bias.

Legend: T tokens, E experts, k choices a token, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.moe.losses import importance_load_loss, importance_loss, load_balance_loss, router_z_loss
from swin_moe.moe.routers.base import (
    Router,
    Routing,
    RoutingRequest,
    mean_entropy,
    normalized,
    priority_order,
    topk,
)
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import fold_in, normal


class SoftmaxRouter(Router):
    """Softmax over the experts, the k best kept (Shazeer et al. 2017; V-MoE, Riquelme et al. 2021, eq. 1).

    In training the logits get normal noise of standard deviation gate_noise / E, from which both choice and
    gates follow. The choice goes by the logits, as the softmax rounds small differences away; ties go to the
    lower expert.
    """

    auto_balance = "importance_load"

    def logits(self, tokens: Tensor) -> Tensor:
        """How much each token wants each expert: (T, C) -> (T, E)."""
        raise NotImplementedError

    def route(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> Routing:
        """Route tokens (T, C) with keys (T,)."""
        moe = self.config
        logits = noisy = self.logits(tokens)  # (T, E)
        if self.training and moe.gate_noise:
            noisy = logits + normal(fold_in(keys, self.site), moe.num_experts) * self._noise_std
        scores = noisy.softmax(dim=-1)
        expert_index = topk(noisy, request.top_k)
        best = gates = scores.gather(1, expert_index)
        if moe.normalize_gates and (moe.compat != "tutel" or request.top_k > 1):
            gates = normalized(gates)
        return Routing(
            num_experts=moe.num_experts,
            gates=gates,
            expert_index=expert_index,
            priority=priority_order(
                request.groups, request.top_k, tokens.shape[0], best[:, 0], prioritized=moe.batch_prioritized
            ),
            losses=self._losses(logits, noisy, scores, expert_index, request.groups) if self.training else {},
            entropy=mean_entropy(scores),
        )

    @property
    def _noise_std(self) -> float:
        return self.config.gate_noise / self.config.num_experts

    def _losses(
        self, logits: Tensor, noisy: Tensor, scores: Tensor, expert_index: Tensor, groups: int
    ) -> dict[str, Tensor]:
        moe, tutel = self.config, self.config.compat == "tutel"
        losses = {}
        if moe.load_balance_weight and moe.balance == "gshard":
            losses["balance"] = load_balance_loss(scores, expert_index, groups)
        elif moe.load_balance_weight and moe.balance == "importance":
            losses["balance"] = importance_loss(logits, groups, tutel=tutel)
        elif moe.load_balance_weight and moe.balance == "importance_load":
            threshold = noisy.gather(1, expert_index[:, -1:])  # (T, 1) the kth largest
            losses["balance"] = importance_load_loss(
                logits, threshold, groups, noise_std=self._noise_std, tutel=tutel
            )
        if moe.z_loss_weight:
            losses["z"] = router_z_loss(logits)
        return losses


class LinearTopKRouter(SoftmaxRouter):
    """Logits by a linear map without bias."""

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))

    def logits(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (T, E)."""
        return F.linear(tokens, self.weight.to(tokens.dtype))


class CosineTopKRouter(SoftmaxRouter):
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
        projector, dtype = self.cosine_projector, tokens.dtype
        projected = F.linear(tokens, projector.weight.to(dtype), projector.bias.to(dtype))
        cosine = F.normalize(projected, dim=1) @ F.normalize(self.sim_matrix.to(dtype), dim=0)
        return cosine * self.temperature.to(dtype).clamp(max=self.bound).exp()


class SigmoidTopKRouter(Router):
    """Sigmoid of each logit; the k best by score plus bias chosen, the scores alone as gates.

    Auxiliary-loss-free balance (Wang et al. 2024, algorithm 1; DeepSeek-V3, eqs. 13-16): an expert's bias
    moves by `bias_update_rate` after every optimizer step, up if the expert got less than the mean load. It
    is stored as an integer number of such moves, so that no cast of the model rounds it.
    """

    bias_steps: Tensor  # (E,) int64

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))
        self.register_buffer("bias_steps", torch.zeros(config.num_experts, dtype=torch.int64))

    def reset_buffers(self) -> None:
        """Start without bias, after a construction on the meta device."""
        self.bias_steps.zero_()

    @torch.no_grad()
    def update_router_bias(self, load: Tensor) -> None:
        """Move the biases once, after an optimizer step.

        Args:
            load: (E,) int64 choices of each expert in the step's global batch.
        """
        self.bias_steps += (load.sum() - load * len(load)).sign()

    def route(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> Routing:
        """Route tokens (T, C)."""
        moe = self.config
        logits = F.linear(tokens, self.weight.to(tokens.dtype))  # (T, E)
        scores = logits.sigmoid()
        bias = self.bias_steps.to(scores.dtype) * moe.bias_update_rate
        expert_index = topk(scores + bias, request.top_k)
        gates = scores.gather(1, expert_index)
        probabilities = normalized(scores)
        return Routing(
            num_experts=moe.num_experts,
            gates=normalized(gates) if moe.normalize_gates else gates,
            expert_index=expert_index,
            priority=priority_order(
                request.groups,
                request.top_k,
                tokens.shape[0],
                scores.amax(1),
                prioritized=moe.batch_prioritized,
            ),
            losses=self._losses(logits, probabilities, expert_index, request.groups) if self.training else {},
            entropy=mean_entropy(probabilities),
        )

    def _losses(
        self, logits: Tensor, probabilities: Tensor, expert_index: Tensor, groups: int
    ) -> dict[str, Tensor]:
        losses = {}
        if self.config.load_balance_weight and self.config.balance == "gshard":
            losses["balance"] = load_balance_loss(probabilities, expert_index, groups)
        if self.config.z_loss_weight:
            losses["z"] = router_z_loss(logits)
        return losses
