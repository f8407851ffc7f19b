"""The MoE layer: router, dispatch, exchange, experts, combine.

Legend: B images, L tokens an image, T = B * L tokens, k choices a token, E experts, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.experts.exchange import ExpertExchange
from parallel.experts.placement import ExpertParallel
from swin_moe.errors import require
from swin_moe.moe.backends import BACKENDS
from swin_moe.moe.backends.base import ExpertOutput, RoutedTokens
from swin_moe.moe.capacity import capacity
from swin_moe.moe.experts import MLP, ExpertMLP
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe.routers import build_router
from swin_moe.moe.routers.base import Routing, RoutingRequest, SoftRouting
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import SiteCounter, split_keys


class MoEStats(NamedTuple):
    """What one MoE layer did with this rank's tokens in one forward pass; none of it waits for the device."""

    loss: Tensor  # scalar: the weighted auxiliary losses of this rank's routing groups, differentiable
    load: Tensor  # (E,) int64 choices that wanted each expert, dropped ones included
    dropped: Tensor  # scalar int64: choices that found no slot
    entropy: Tensor  # scalar: mean over the tokens of the entropy of their scores, in nats
    received: Tensor  # scalar int64: rows that this rank's experts computed
    choices: Tensor | None = None  # (B, E) int64: `load` by image, with `by_image`
    lost: Tensor | None = None  # (B,) int64: `dropped` by image, with `by_image`

    def by_sample(self, views: int) -> "MoEStats":
        """The statistics by image, (B V, ...), as those of B samples of `views` consecutive images each."""
        if self.choices is None or self.lost is None:
            return self
        choices, lost = (each.unflatten(0, (-1, views)).sum(1) for each in (self.choices, self.lost))
        return self._replace(choices=choices, lost=lost)

    def of_views(self, samples: int) -> "MoEStats":
        """The statistics by image, (V B, ...), of V views of B samples, view after view, by sample."""
        if self.choices is None or self.lost is None:
            return self
        choices, lost = (each.unflatten(0, (-1, samples)).sum(0) for each in (self.choices, self.lost))
        return self._replace(choices=choices, lost=lost)

    @staticmethod
    def of_passes(passes: Sequence["MoEStats"]) -> "MoEStats":
        """The statistics of several passes over views of the same images: counts added, means of the rest."""
        first, *others = passes
        if not others:
            return first
        loss, load, dropped, entropy, received = (
            torch.stack([getattr(one, name) for one in passes])
            for name in ("loss", "load", "dropped", "entropy", "received")
        )
        choices = [one.choices for one in passes if one.choices is not None]
        lost = [one.lost for one in passes if one.lost is not None]
        return MoEStats(
            loss=loss.mean(),
            load=load.sum(0),
            dropped=dropped.sum(),
            entropy=entropy.mean(),
            received=received.sum(),
            choices=torch.stack(choices).sum(0) if choices else None,
            lost=torch.stack(lost).sum(0) if lost else None,
        )

    def of_images(self, weights: Tensor) -> "MoEStats":
        """The statistics with the load and the drops of some images: weights (B,), 0 leaves an image out."""
        assert self.choices is not None
        assert self.lost is not None
        counted = weights.to(torch.int64)
        return self._replace(
            load=(self.choices * counted[:, None]).sum(0), dropped=(self.lost * counted).sum()
        )


class MoELayer(nn.Module):
    """A mixture of expert MLPs in the place of a block's MLP.

    The same tokens get the same answer on any layout: routing groups of `routing_group_images` images decide
    which choices are dropped, and every random draw is keyed by its token.

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
        self.router = build_router(dim, config, sites.next())
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

    def forward(
        self, x: Tensor, keys: Tensor, call: RoutingOverrides | None = None
    ) -> tuple[Tensor, MoEStats]:
        """Send every token to its experts and back.

        1. Router: the experts of each token, the weight of each choice, the order of the choices, the losses.
        2. Dispatch: each choice gets a slot of its expert or is dropped; rows are sorted by expert.
        3. Exchange: rows travel to the ranks of their experts, or weights to the rows.
        4. Experts: one MLP an expert on its rows.
        5. Combine: rows travel back; each token is the sum of its rows, weighted by its gates.

        The backend does steps 2 to 5: backends/native.py, or Tutel.

        Args:
            x: (B, L, C).
            keys: (B,) of the images.
            call: what this pass changes of the configuration.

        Returns:
            (B, L, C), zero where every choice of a token was dropped (the shared expert's answer, if there is
            one); and the statistics.

        Raises:
            ModelError: the images do not fill complete routing groups, or `call` asks for the impossible.
        """
        images, length, channels = x.shape
        call = call or RoutingOverrides()
        tokens = x.reshape(-1, channels)  # (T, C)
        token_keys = split_keys(keys, length).view(-1)  # (T,)
        request = self._request(images, length, call)

        routing = self.router(tokens, token_keys, request)
        run_experts = BACKENDS[self.config.backend]
        output = run_experts(self, RoutedTokens(tokens, token_keys, routing, request, call.exchange))

        y = output.y.view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, keys)[0]
        return y, self._stats(routing, output, images if call.by_image else None)

    def _request(self, images: int, length: int, call: RoutingOverrides) -> RoutingRequest:
        """Groups, choices, and the slots of one expert in one group, by configuration and `call`."""
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
        return RoutingRequest(
            groups=images // size,
            length=length,
            top_k=top_k,
            factor=factor,
            slots=capacity(factor, size * length, moe.num_experts, top_k),
        )

    def _stats(self, routing: Routing | SoftRouting, output: ExpertOutput, images: int | None) -> MoEStats:
        """The statistics of a pass; with those of each image where `images` is their number."""
        stats = MoEStats(
            loss=self._loss(routing.losses, output.y.device),
            load=output.load,
            dropped=output.dropped,
            entropy=routing.entropy,
            received=output.received,
        )
        return stats if images is None else self._by_image(stats, routing, output.kept, images)

    def _loss(self, losses: dict[str, Tensor], device: torch.device) -> Tensor:
        """The weighted sum of the router's losses: scalar, fp32."""
        weights = {"balance": self.config.load_balance_weight, "z": self.config.z_loss_weight}
        weighted = [weights[name] * loss for name, loss in losses.items()]
        return sum(weighted[1:], weighted[0]) if weighted else torch.zeros((), device=device)

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
