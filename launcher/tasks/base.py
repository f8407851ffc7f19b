"""The interface of a task, the interface of its metric, and the normalization that all tasks share.

Legend: B images of H x W pixels.
"""

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data_shards.augment.normalize import Normalize
from data_shards.stream.batch import Batch
from launcher.config.schema import DataConfig, RunConfig
from parallel.experts.exchange import ExchangeOptions
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.model import SwinTransformer


class Metric(Protocol):
    """What an evaluation computes: sums over batches and ranks, and the values that follow from them."""

    def sums(self, output: Any, batch: Batch) -> Tensor:
        """The sums of one batch: (n,) fp64. Evaluation adds them over batches and ranks."""

    def compute(self, sums: list[float]) -> dict[str, Any]:
        """The values by name, among them `loss` and `images`."""

    def line(self, values: dict[str, Any]) -> str:
        """The values as text."""


class Task(Protocol):
    """One kind of training: its model, its loss and its metric."""

    metric: Metric

    def __init__(self, config: RunConfig, device: torch.device) -> None: ...

    def build(self, mesh: Mesh, *, sharded: bool, exchange: ExchangeOptions) -> nn.Module:
        """Build the model with its initial weights."""

    @staticmethod
    def on_meta(config: RunConfig) -> nn.Module:
        """Build the model on the meta device, with all experts on one rank."""

    @staticmethod
    def backbone(model: nn.Module) -> SwinTransformer:
        """The part of the model that pretrained weights are loaded into."""

    def inputs(self, batch: Batch) -> Any:
        """The argument of `loss` for a micro-batch, on the device. It depends on the samples alone."""

    def loss(self, engine: Any, inputs: Any, keys: Tensor) -> tuple[Tensor, Any]:
        """The mean loss of a micro-batch without the MoE layers' auxiliary losses, and the model's output."""

    def visualize(self, model: nn.Module, images: Tensor, output: Any) -> Tensor | None:
        """An image of what the model does to normalized images: (3, height, width) in 0 to 1, if any."""


def normalize_images(images: Tensor, data: DataConfig, device: torch.device) -> Tensor:
    """Move uint8 images to the device and normalize them there: (B, 3, H, W) -> float32."""
    return _normalize(data.mean, data.std, device)(images)


_normalize = cache(Normalize)  # its tensors are sent to a device once, because sending them waits
