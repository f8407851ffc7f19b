"""MoBY: contrastive pre-training without labels (Xie et al. 2021, arXiv:2105.04553).

The online network is encoder, projector and predictor; the target network, a moving average of it, has no
predictor. The prediction of each view is drawn to the target's projection (the key) of the other view, and
away from a queue of keys of earlier samples.

Legend: V views of a sample, B samples, C channels of the last map, D channels of a key, K keys of a queue.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.group_batch_norm import GroupBatchNorm1d
from swin_moe.backbone.model import construct
from swin_moe.config import ModelConfig
from swin_moe.heads.filled_layers import FilledLinear, fill_uniform
from swin_moe.heads.moby_config import MoBYConfig
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import fold_in

VIEW_SITE = -2  # less the number of a further view: of its keys; the sites of a model count from 0


class Embeddings(NamedTuple):
    """What a network says of the views of samples, and the statistics of its MoE layers over all views."""

    values: Tensor  # (V, B, D); (V, B, C) of an encoder alone
    moe: dict[str, MoEStats]


def keys_of_view(keys: Tensor, view: int) -> Tensor:
    """The keys (B,) of the draws of a view; those of the first are the samples'."""
    return fold_in(keys, VIEW_SITE - view) if view else keys


class MLPHead(nn.Module):
    """Linear, batch norm, ReLU, linear: (B, in_dim) -> (B, out_dim); section 3.1 of the paper.

    The batch norm always takes the statistics of its groups, as the heads are not evaluated.

    Args:
        in_dim: channels of the input.
        config: of the rest.
    """

    def __init__(self, in_dim: int, config: MoBYConfig) -> None:
        super().__init__()
        self.fc1 = FilledLinear(in_dim, config.hidden_dim, fill_uniform)
        self.norm = GroupBatchNorm1d(config.hidden_dim, config.norm_group_images, track_running_stats=False)
        self.fc2 = FilledLinear(config.hidden_dim, config.out_dim, fill_uniform)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (B, out_dim)."""
        y: Tensor = self.fc2(self.norm(self.fc1(x)).relu())
        return y


class MoBYTarget(nn.Module):
    """The target network: an encoder and a projector.

    Args:
        model: the encoder.
        config: of the heads.
        placement: where the experts are; needed when the model has any.
    """

    def __init__(
        self, model: ModelConfig, config: MoBYConfig, placement: ExpertParallel | None = None
    ) -> None:
        super().__init__()
        self.encoder = Backbone(model, placement)
        self.projector = MLPHead(self.encoder.channels[-1], config)

    def forward(self, views: Sequence[Tensor], keys: Tensor) -> Embeddings:
        """The projections of the views: V of (B, in_chans, h, w) with keys (B,)."""
        pooled = self.pooled(views, keys)
        return pooled._replace(values=torch.stack([self.projector(x) for x in pooled.values]))

    def pooled(
        self, views: Sequence[Tensor], keys: Tensor, call: RoutingOverrides | None = None
    ) -> Embeddings:
        """The encoder's pooled features of each view, in one pass a view.

        So a routing group of experts and a group of batch norms has images of one view. `call` is what the
        MoE layers do otherwise than configured in this pass.
        """
        passes = [
            self.encoder.forward_pooled(images, keys_of_view(keys, view), call)
            for view, images in enumerate(views)
        ]
        statistics = [moe for _, moe in passes]
        moe = {name: MoEStats.of_passes([one[name] for one in statistics]) for name in statistics[0]}
        return Embeddings(torch.stack([features for features, _ in passes]), moe)


class MoBY(MoBYTarget):
    """The online network: the target's layers and a predictor; see `MoBYTarget` for arguments."""

    def __init__(
        self, model: ModelConfig, config: MoBYConfig, placement: ExpertParallel | None = None
    ) -> None:
        super().__init__(model, config, placement)
        self.predictor = MLPHead(config.out_dim, config)

    def forward(
        self,
        views: Sequence[Tensor],
        keys: Tensor,
        call: RoutingOverrides | None = None,
        features_only: bool = False,
    ) -> Embeddings:
        """The predictions of the views: V of (B, in_chans, h, w) with keys (B,).

        With `features_only`, the encoder's pooled features, for evaluation. `call`: see `pooled`.
        """
        pooled = self.pooled(views, keys, call)
        if features_only:
            return pooled
        predictions = [self.predictor(self.projector(x)) for x in pooled.values]
        return pooled._replace(values=torch.stack(predictions))


class MoBYLoss(NamedTuple):
    """The loss, and what tells a healthy run from a collapsed one: scalars, fp32."""

    loss: Tensor  # both terms summed, the mean over the samples
    positive: Tensor  # cosine of a query and the key of the other view, the mean
    negative: Tensor  # cosine of a query and the keys of the queue, the mean
    spread: Tensor  # standard deviation of a channel of the unit queries over the samples, the mean


def contrastive_loss(queries: Tensor, keys: Tensor, queues: Tensor, temperature: float) -> MoBYLoss:
    """InfoNCE of each view's queries with the other view's keys; section 3.1 of the paper.

    The positive is entry 0 of 1 + K. No other sample of the batch is a negative. The two terms are added, and
    not scaled by the temperature as MoCo v3 does. A network that tells nothing apart has 2 ln(1 + K).

    Args:
        queries: (2, B, D) predictions.
        keys: (2, B, D) unit keys of the target, without gradient.
        queues: (2, K, D) unit keys of earlier samples, by view.
        temperature: that the cosines are divided by.
    """
    queries, others, queues = F.normalize(queries.float(), dim=-1), keys.float().flip(0), queues.flip(0)
    positive = (queries * others).sum(-1)  # (2, B)
    negatives = queries @ queues.mT  # (2, B, K)
    logits = torch.cat([positive[..., None], negatives], dim=-1) / temperature
    losses = logits.logsumexp(-1) - logits[..., 0]
    with torch.no_grad():
        spread = queries.std(dim=1, correction=0).mean()
    return MoBYLoss(losses.mean(1).sum(), positive.detach().mean(), negatives.detach().mean(), spread)


def build_moby(
    model: ModelConfig,
    config: MoBYConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> MoBY:
    """The online network, with initial weights that depend on (model, config, seed) alone; see `build_model`.

    Batch norms over groups that span ranks need `span_ranks` before training.
    """

    def make(model: ModelConfig, placement: ExpertParallel | None) -> MoBY:
        return MoBY(model, config, placement)

    return construct(
        make, model, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )


def build_target(
    model: ModelConfig,
    config: MoBYConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    exchange: ExchangeOptions | None = None,
) -> MoBYTarget:
    """The target network, complete on each rank, whose weights are replaced; see `build_moby`."""

    def make(model: ModelConfig, placement: ExpertParallel | None) -> MoBYTarget:
        return MoBYTarget(model, config, placement)

    return construct(make, model, seed=seed, mesh=mesh, sharded=False, exchange=exchange or ExchangeOptions())
