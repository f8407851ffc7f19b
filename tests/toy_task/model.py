"""A backbone with three small heads.

Legend: B images, D width of the projections, N points of all images together.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.config import ModelConfig
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides


class ToyOutput(NamedTuple):
    """What the heads say of images, and the statistics of MoE layers."""

    projection: Tensor  # (B, D)
    prediction: Tensor  # (B, D)
    centroid: Tensor  # (B, 2) where the model expects the points
    moe: dict[str, MoEStats]


class Toy(nn.Module):
    """An encoder, a projector, a predictor on it, and a centroid of points."""

    def __init__(self, model: ModelConfig, width: int, placement: ExpertParallel | None = None) -> None:
        super().__init__()
        self.encoder = Backbone(model, placement)
        self.projector = nn.Linear(model.stage_dim(len(model.depths) - 1), width)
        self.predictor = nn.Linear(width, width)
        self.points = nn.Linear(width, 2)

    def forward(self, images: Tensor, keys: Tensor, call: RoutingOverrides | None = None) -> ToyOutput:
        """Images (B, 3, H, W) with keys (B,)."""
        features, moe = self.encoder.forward_pooled(images, keys, call)
        projection = self.projector(features)
        prediction = self.predictor(torch.tanh(projection))
        return ToyOutput(projection, prediction, self.points(projection), moe)
