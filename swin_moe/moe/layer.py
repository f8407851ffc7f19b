"""The MoE layer: router, plan, exchange, experts, combine.

Legend: B images, L tokens an image, T = B * L tokens, E experts, C channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.experts.exchange import ExchangeOptions, ExpertExchange
from parallel.experts.placement import ExpertParallel
from swin_moe.config import MoEConfig, require
from swin_moe.moe.backends.native import BACKENDS, Routed
from swin_moe.moe.dispatch import capacity
from swin_moe.moe.experts import ExpertMLP
from swin_moe.moe.mlp import MLP
from swin_moe.moe.routers.registry import ROUTERS, RouterCall, Routing, SoftRouting
from swin_moe.random.keyed import SiteCounter, fork_all


@dataclass(frozen=True, kw_only=True)
class MoECall:
    """What one forward pass changes of every MoE layer's configuration; None leaves it as it is.

    Nothing is rebuilt: the parameters and their places stay.
    """

    top_k: int | None = None
    capacity_factor: float | None = None
    exchange: ExchangeOptions | None = None
    by_image: bool = False  # whether the statistics tell the images apart


class MoEStats(NamedTuple):
    """What one MoE layer did with this rank's tokens in one forward pass; none of it waits for the device."""

    loss: Tensor  # scalar: the weighted auxiliary losses of this rank's routing groups, differentiable
    load: Tensor  # (E,) int64 choices that wanted each expert, dropped ones included
    dropped: Tensor  # scalar int64: choices that found no slot
    entropy: Tensor  # scalar: mean over the tokens of the entropy of their scores, in nats
    received: Tensor  # scalar int64: rows that this rank's experts computed
    choices: Tensor | None = None  # (B, E) int64: `load` by image, if the call asks for it
    lost: Tensor | None = None  # (B,) int64: `dropped` by image, likewise

    def of_images(self, weights: Tensor) -> "MoEStats":
        """The same with the load and the drops of some images alone: weights (B,), 0 leaves one out."""
        assert self.choices is not None
        assert self.lost is not None
        counted = weights.to(torch.int64)
        return self._replace(
            load=(self.choices * counted[:, None]).sum(0), dropped=(self.lost * counted).sum()
        )


class MoELayer(nn.Module):
    """A mixture of expert MLPs in the place of a block's MLP.

    The same tokens get the same answer on any layout: who is dropped is decided inside routing groups of
    `routing_group_images` images, and every random draw is keyed by its token.

    Args:
        dim: C.
        hidden: hidden channels of an expert.
        config: routing and capacity.
        placement: which experts this rank holds and how tokens reach the others.
        fc2_bias: whether the experts' second linear layer has a bias.
        sites: numbers for the places that draw random numbers.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        config: MoEConfig,
        placement: ExpertParallel,
        *,
        fc2_bias: bool,
        sites: SiteCounter,
    ) -> None:
        super().__init__()
        self.config, self.placement = config, placement
        self.exchange = ExpertExchange(placement)
        self.router = ROUTERS[config.router](dim, config, sites.next())
        self.experts = ExpertMLP(
            dim,
            hidden,
            placement,
            activation=config.expert_activation,
            dropout=config.expert_dropout,
            fc2_bias=fc2_bias,
            recompute=config.recompute_activation,
            site=sites.next(),
        )
        self.shared = None
        if config.shared_expert:
            self.shared = MLP(dim, hidden, dropout=config.expert_dropout, fc2_bias=fc2_bias, sites=sites)

    def forward(self, x: Tensor, keys: Tensor, call: MoECall | None = None) -> tuple[Tensor, MoEStats]:
        """Send every token to its experts and back.

        Args:
            x: (B, L, C).
            keys: (B,) of the images.
            call: what this pass does otherwise than the configuration says.

        Returns:
            (B, L, C), zero where every choice of a token was dropped (the shared expert's answer, if there is
            one); and the statistics.

        Raises:
            ModelError: the images do not fill whole routing groups, or `call` asks for the impossible.
        """
        images, length, channels = x.shape
        call = call or MoECall()
        tokens = x.reshape(-1, channels)
        token_keys = fork_all(keys, length).view(-1)  # (T,)
        request = self._request(images, length, call)

        routing = self.router(tokens, token_keys, request)
        done = BACKENDS[self.config.backend](
            Routed(self, tokens, token_keys, routing, request, call.exchange)
        )
        y = done.y.view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, keys)[0]
        stats = MoEStats(
            loss=self._loss(routing.losses, x.device),
            load=done.load,
            dropped=done.dropped,
            entropy=routing.entropy,
            received=done.received,
        )
        return y, self._by_image(stats, routing, done.kept, images) if call.by_image else stats

    def _by_image(
        self, stats: MoEStats, routing: Routing | SoftRouting, kept: Tensor | None, images: int
    ) -> MoEStats:
        """The statistics with those of each image; `kept` (T, k) tells which choices found a slot."""
        experts, device = self.config.num_experts, stats.load.device
        if isinstance(routing, SoftRouting):  # every image has as many slots of every expert
            even = torch.full((images, experts), self.config.slots_per_expert, device=device)
            return stats._replace(choices=even, lost=torch.zeros(images, dtype=torch.int64, device=device))
        assert kept is not None
        index = routing.expert_index.reshape(images, -1)  # (B, L * k), num_experts where there is no choice
        counts = torch.zeros(images, experts + 1, dtype=torch.int64, device=device)
        counts.scatter_add_(1, index, torch.ones_like(index))
        lost = ((index < experts) & ~kept.reshape(images, -1)).sum(1)
        unchosen = (routing.expert_index[:, 0] == experts).view(images, -1).sum(1)
        return stats._replace(choices=counts[:, :-1], lost=lost + unchosen)

    def _loss(self, losses: dict[str, Tensor], device: torch.device) -> Tensor:
        """The weighted sum of the router's losses: scalar, fp32."""
        weights = {"balance": self.config.load_balance_weight, "z": self.config.z_loss_weight}
        weighted = [weights[name] * loss for name, loss in losses.items()]
        return sum(weighted[1:], weighted[0]) if weighted else torch.zeros((), device=device)

    def _request(self, images: int, length: int, call: MoECall) -> RouterCall:
        """What this pass asks of the router: groups, choices, and the slots of one expert in one group."""
        moe = self.config
        top_k = moe.top_k if call.top_k is None else call.top_k
        require(
            1 <= top_k <= moe.num_experts, f"top_k ({top_k}) must lie in 1..num_experts ({moe.num_experts})"
        )
        factor = moe.capacity_factor if self.training else moe.eval_capacity_factor
        factor = factor if call.capacity_factor is None else call.capacity_factor
        size = moe.routing_group_images
        if moe.router == "soft" or (not self.training and factor == 0):  # the groups decide nothing
            size = max(1, images)
        require(
            images % size == 0,
            f"model.moe.routing_group_images ({size}) must divide the images of a forward pass ({images}); "
            "change it or the micro-batch",
        )
        return RouterCall(
            groups=images // size,
            length=length,
            top_k=top_k,
            factor=factor,
            slots=capacity(factor, size * length, moe.num_experts, top_k),
        )
