"""Classification: cross-entropy of one label per image, or of mixed labels.

Legend: B images of H x W pixels, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from data_shards.augment.pipeline import Augment
from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.tasks.base import Metric, normalize_images
from launcher.tasks.classification.metric import ClassificationMetric
from parallel.experts.exchange import ExchangeOptions
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.flops import build_on_meta
from swin_moe.backbone.model import ModelOutput, SwinTransformer, build_model
from swin_moe.heads.classification import classification_loss


class ClassificationTask:
    """Training of a classifier.

    Args:
        config: of the run.
        device: of the model.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.metric: Metric = ClassificationMetric(device)
        data = config.data
        self.augment = None
        if data.augment is not None:
            self.augment = Augment(
                data.augment, seed=config.seed, mean=data.mean, std=data.std, device=device
            )

    def build(self, mesh: Mesh, *, sharded: bool, exchange: ExchangeOptions) -> SwinTransformer:
        """Build the classifier with its initial weights."""
        config = self.config
        return build_model(config.model, seed=config.seed, mesh=mesh, sharded=sharded, exchange=exchange)

    @staticmethod
    def on_meta(config: RunConfig) -> nn.Module:
        """Build the classifier on the meta device."""
        return build_on_meta(config.model)

    @staticmethod
    def backbone(model: nn.Module) -> SwinTransformer:
        """The whole classifier."""
        assert isinstance(model, SwinTransformer)
        return model

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32, and labels (B,) or, of mixed images, probabilities (B, K)."""
        if self.augment is None:
            images = normalize_images(batch["image"], self.config.data, self.device)
            return images, send(batch["label"], self.device)
        images, targets = self.augment(batch["image"], batch["label"], batch.positions)
        return images, targets.soft(self.config.model.num_classes)

    def loss(self, engine: Any, inputs: Any, keys: Tensor) -> tuple[Tensor, ModelOutput]:
        """Cross-entropy with label smoothing, and the model's output."""
        images, targets = inputs
        output = engine(images, keys)
        return classification_loss(output.logits, targets, self.config.optim.label_smoothing), output

    def visualize(self, model: nn.Module, images: Tensor, output: Any) -> None:
        """No image: the metric says everything."""
