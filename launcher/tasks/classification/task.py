"""Classification: cross-entropy or binary cross-entropy of one label per image, or of mixed labels.

Legend: B images of H x W pixels, K classes.
"""

from typing import Any

from torch import Tensor, nn

from data_shards.augment.pipeline import Augment
from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.metrics.accuracy import ClassificationMetric
from launcher.metrics.metric import Metric
from launcher.tasks.class_loss import class_loss
from launcher.tasks.image_data import ImageTask
from launcher.tasks.spec import StepOutput, TaskContext
from parallel.ranks.host import send
from swin_moe.backbone.model import build_model


def step(config: RunConfig, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
    """The loss of images (B, 3, H, W) with labels (B,) or probabilities (B, K), with label smoothing."""
    images, targets = inputs
    output = engine(images, keys)
    return StepOutput(loss=class_loss(config.optim, output.logits, targets), terms={}, moe=output.moe)


class ClassificationTask(ImageTask):
    """Training of a classifier: its predictions are logits (B, K)."""

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        data = config.data
        self.model: nn.Module = build_model(
            config.model,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(context.device)
        self.augment = None
        if data.augment is not None:
            self.augment = Augment(
                data.augment, seed=config.seed, mean=data.mean, std=data.std, device=self.device
            )

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32, and labels (B,) or, of mixed images, probabilities (B, K)."""
        if self.augment is None:
            return self.eval_inputs(batch), send(batch["label"], self.device)
        images, targets = self.augment(batch["image"], batch["label"], batch.positions)
        return images, targets.soft(self.config.model.num_classes)

    def step(self, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
        """The loss of a micro-batch."""
        return step(self.config, engine, inputs, keys)

    def metric(self) -> Metric:
        """Accuracy and cross-entropy."""
        return ClassificationMetric(self.device)
