"""The MoE layer: router, plan, exchange, experts, combine.

Legend: B images, L tokens an image, T = B * L tokens, k choices, E experts, C channels, N rows kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.expert import ExpertParallel, TokenExchange
from swin_moe.config import ModelError, MoEConfig
from swin_moe.dispatch import capacity, combine, dispatch, make_plan
from swin_moe.experts import GroupedMLP
from swin_moe.losses import load_balance_loss
from swin_moe.randomness import SiteCounter, fork
from swin_moe.router import ROUTERS


class MoEStats(NamedTuple):
    """What one MoE layer did with this rank's tokens in one forward pass."""

    loss: Tensor  # scalar: the weighted balance loss of this rank's routing groups, differentiable
    load: Tensor  # (E,) int64 choices that wanted each expert, dropped ones included
    dropped: Tensor  # scalar int64: choices that found no slot


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
        self.router = ROUTERS[config.router](dim, config, sites.next())
        self.experts = GroupedMLP(
            dim, hidden, placement, dropout=config.expert_dropout, fc2_bias=fc2_bias, site=sites.next()
        )

    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, MoEStats]:
        """Send every token to its experts and back.

        Args:
            x: (B, L, C).
            keys: (B,) of the images.

        Returns:
            (B, L, C), zero where every choice of a token was dropped; and the statistics.
        """
        images, length, channels = x.shape
        tokens = x.reshape(-1, channels)
        token_keys = fork(keys[:, None], torch.arange(length, device=x.device)).view(-1)  # (T,)
        groups, slots = self._capacity(images, length)

        routing = self.router(tokens, token_keys)
        plan = make_plan(routing, groups=groups, slots=slots, prioritized=self.config.batch_prioritized)
        exchange = TokenExchange(plan.counts, self.placement)
        rows = exchange.dispatch(dispatch(tokens, plan))
        rows = self.experts(rows, exchange.local_counts, self._row_keys(token_keys, plan.order, exchange))
        y = combine(exchange.combine(rows), routing.gates, plan)

        stats = MoEStats(
            loss=self.config.load_balance_weight * load_balance_loss(routing, groups),
            load=plan.load,
            dropped=plan.load.sum() - len(plan.order),
        )
        return y.view_as(x), stats

    def _capacity(self, images: int, length: int) -> tuple[int, int]:
        """Routing groups of this call, and the slots of one expert in one of them."""
        moe = self.config
        factor = moe.capacity_factor if self.training else moe.eval_capacity_factor
        size = moe.routing_group_images
        if not self.training and factor == 0:  # dropless evaluation: groups decide nothing
            size = max(1, images)
        if images % size:
            raise ModelError(
                f"model.moe.routing_group_images ({size}) must divide the images of a forward pass "
                f"({images}); change it or the micro-batch"
            )
        return images // size, capacity(factor, size * length, moe.num_experts, moe.top_k)

    def _row_keys(self, token_keys: Tensor, order: Tensor, exchange: TokenExchange) -> Tensor:
        """Keys of the rows at their experts; they travel only when dropout needs them."""
        top_k = self.config.top_k
        if not self.training or self.experts.dropout.rate == 0.0:
            return token_keys
        return exchange.dispatch(fork(token_keys[order // top_k], order % top_k))
