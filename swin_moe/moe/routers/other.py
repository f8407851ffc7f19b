"""Routers without a choice of the tokens: experts choose, slots mix, or a draw decides.

Legend: T tokens, E experts, k choices a token, C channels, G routing groups, S = T / G tokens a group,
B images, L tokens an image, p slots an expert and image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.moe.losses import router_z_loss
from swin_moe.moe.routers.base import (
    Router,
    Routing,
    RoutingRequest,
    SoftRouting,
    mean_entropy,
    priority_order,
    topk,
)
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import fold_in, sample_keys, uniform


class ExpertChoiceRouter(Router):
    """Every expert takes the tokens of a routing group that want it most, as many as it has slots.

    Scores are a softmax over the experts and the gates are the scores (Zhou et al. 2022, section 3.2); ties
    go to the earlier token. A token may be chosen by several experts or by none. The host waits for one
    number, the most experts that chose one token.
    """

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))

    def route(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> Routing:
        """Route tokens (T, C)."""
        num_experts = self.config.num_experts
        logits = F.linear(tokens, self.weight.to(tokens.dtype))  # (T, E)
        scores = logits.softmax(dim=-1)
        chosen = self._chosen(scores.detach(), request)  # (T, E)
        top_k = max(1, int(chosen.sum(1).amax())) if len(tokens) else 1
        index = topk(scores.masked_fill(~chosen, -1.0), top_k)
        taken = chosen.gather(1, index)
        gates = scores.gather(1, index) * taken  # a product, so that NaN stays NaN
        return Routing(
            num_experts=num_experts,
            gates=gates,
            expert_index=index.where(taken, num_experts),
            priority=priority_order(request.groups, top_k, len(tokens), scores[:, 0], prioritized=False),
            losses=_z_loss(self, logits),
            entropy=mean_entropy(scores),
            every_choice=False,
        )

    def _chosen(self, scores: Tensor, request: RoutingRequest) -> Tensor:
        """Which expert takes which token: (T, E) -> (T, E) bool."""
        size = len(scores) // max(1, request.groups)
        by_group = scores.view(request.groups, size, scores.shape[1])  # (G, S, E)
        rank = by_group.argsort(dim=1, descending=True, stable=True)[:, : request.slots]
        chosen = torch.zeros_like(by_group, dtype=torch.bool).scatter_(1, rank, True)
        return chosen.view_as(scores)


class SoftRouter(Router):
    """Every slot is a mixture of an image's tokens, every output a mixture of its slots.

    Soft MoE (Puigcerver et al. 2023, section 2.1) with normalised tokens and slots and a learned scale
    (section 2.3). Nothing is dropped, and no group or capacity matters.
    """

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)
        self.phi = nn.Parameter(torch.empty(dim, config.num_experts * config.slots_per_expert))
        self.scale = nn.Parameter(torch.ones(1))

    def route(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> SoftRouting:
        """Route tokens (T, C) of T / L images."""
        phi = F.normalize(self.phi.to(tokens.dtype), dim=0) * self.scale.to(tokens.dtype)
        logits = (F.normalize(tokens, dim=1) @ phi).view(-1, request.length, phi.shape[1])  # (B, L, E * p)
        mix_out = logits.softmax(dim=2)
        experts = mix_out.detach().unflatten(2, (self.config.num_experts, -1)).sum(3)  # (B, L, E)
        return SoftRouting(
            num_experts=self.config.num_experts,
            mix_in=logits.softmax(dim=1),
            mix_out=mix_out,
            losses=_z_loss(self, logits),
            entropy=mean_entropy(experts.flatten(0, 1)),
        )


class DrawnRouter(Router):
    """k distinct experts drawn at random, each with the weight 1 / k: a baseline without parameters."""

    def __init__(self, dim: int, config: MoEConfig, site: int) -> None:
        super().__init__(config, site)

    def draw_keys(self, keys: Tensor, length: int) -> Tensor:
        """Where each token's draw comes from: keys (T,) of the tokens, L -> (T,)."""
        raise NotImplementedError

    def route(self, tokens: Tensor, keys: Tensor, request: RoutingRequest) -> Routing:
        """Route T tokens with keys (T,)."""
        draws = uniform(self.draw_keys(keys, request.length), self.config.num_experts)  # (T, E)
        gates = tokens.new_full((len(tokens), request.top_k), 1.0 / request.top_k)
        return Routing(
            num_experts=self.config.num_experts,
            gates=gates,
            expert_index=topk(draws, request.top_k),
            priority=priority_order(
                request.groups, request.top_k, tokens.shape[0], gates[:, 0], prioritized=False
            ),
            losses={},
            entropy=mean_entropy(gates),
        )


class HashRouter(DrawnRouter):
    """The same experts for the same position of every image (hash layers, Roller et al. 2021, section 3)."""

    def draw_keys(self, keys: Tensor, length: int) -> Tensor:
        """Of the position in the image."""
        position = torch.arange(length, device=keys.device)
        return sample_keys(self.site, position).repeat(len(keys) // length)


class RandomRouter(DrawnRouter):
    """Experts drawn by the token's key."""

    def draw_keys(self, keys: Tensor, length: int) -> Tensor:
        """Of the token itself."""
        return fold_in(keys, self.site)


def _z_loss(router: Router, logits: Tensor) -> dict[str, Tensor]:
    """The configured loss of a router that needs none for balance."""
    configured = router.training and router.config.z_loss_weight > 0
    return {"z": router_z_loss(logits)} if configured else {}
