"""Semantic segmentation: a class for every pixel, by UPerNet on any backbone.

Legend: B images of h x w pixels, K classes; H x W pixels of an image at its own size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_shards.augment.photometric import PhotometricDistortion
from data_shards.augment.pixel_labels import PixelAugment
from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.metric import Metric
from launcher.tasks.image_data import normalize_images
from launcher.tasks.norm_task import NormTask
from launcher.tasks.segmentation.data import eval_images
from launcher.tasks.segmentation.metric import SegmentationMetric
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.tasks.segmentation.pictures import side_by_side
from launcher.tasks.segmentation.prediction import (
    SegmentationPrediction,
    SlidingWindows,
    Views,
    predict_views,
)
from launcher.tasks.spec import StepOutput, TaskContext
from parallel.ranks.host import send
from swin_moe.heads.segmentation import segmentation_loss
from swin_moe.heads.upernet import SegmentationOutput, build_segmenter
from swin_moe.moe.overrides import RoutingOverrides


class EvalInputs(NamedTuple):
    """Images of one size and their label images."""

    images: tuple[Tensor, ...]  # (B, 3, h, w) float32 for each ratio
    labels: Tensor  # (B, H, W) uint8, on the host: for pictures alone


def step(config: RunConfig, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
    """The loss of images (B, 3, h, w) with labels (B, h, w): of the decode head, and of the auxiliary one."""
    options = options_of(config, SegmentationOptions)
    images, labels = inputs
    output: SegmentationOutput = engine(images, keys)
    loss = segmentation_loss(output.logits, labels, options.loss_over)
    terms = {"decode_loss": loss}
    if output.auxiliary is not None:
        terms["auxiliary_loss"] = segmentation_loss(output.auxiliary, labels, options.loss_over)
        loss = loss + options.auxiliary_weight * terms["auxiliary_loss"]
    return StepOutput(loss=loss, terms=terms, moe=output.moe)


def views(config: RunConfig) -> Views:
    """Which views of an image a run evaluates."""
    options = options_of(config, SegmentationOptions)
    slide = None
    if options.eval_mode == "slide":
        sides = config.model.image_sides
        height, width = sides if options.eval_crop is None else (options.eval_crop,) * 2
        tall, wide = (options.eval_stride or max(1, side * 2 // 3) for side in (height, width))
        slide = SlidingWindows((height, width), (tall, wide), options.eval_windows)
    return Views(slide, options.eval_flip, options.eval_band)


class SegmentationTask(NormTask):
    """Training of a segmentation model: its predictions are the classes of pixels.

    Args:
        config: of the run.
        context: of this rank.
    """

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        self.options, data = options_of(config, SegmentationOptions), config.data
        model = build_segmenter(
            config.model,
            self.options.head,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(context.device)
        super().__init__(config, context.mesh, model)
        self.device = context.device
        self.augment = PixelAugment(
            PhotometricDistortion() if self.options.photometric else None,
            seed=config.seed,
            mean=data.mean,
            std=data.std,
            device=self.device,
        )
        self.image_names, self.views = eval_images(config).image_names, views(config)

    @property
    def pictured_batches(self) -> int:
        """One of each image, as a batch has one."""
        return self.options.pictures

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, h, w) float32 and labels (B, h, w) uint8."""
        images = self.augment(batch["image"], batch["size"], batch.positions)
        return images, send(batch["mask"], self.device)

    def step(self, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
        """The loss of a micro-batch."""
        return step(self.config, engine, inputs, keys)

    def eval_inputs(self, batch: Batch) -> EvalInputs:
        """The images at each ratio, and their labels."""
        images = (normalize_images(batch[name], self.config.data, self.device) for name in self.image_names)
        return EvalInputs(tuple(images), batch["mask"])

    def predict(
        self, model: nn.Module, inputs: EvalInputs, keys: Tensor, call: RoutingOverrides
    ) -> SegmentationPrediction:
        """The class of every pixel, at the size of the labels."""
        height, width = inputs.labels.shape[1:]

        def run(images: Tensor, keys: Tensor) -> SegmentationOutput:
            output: SegmentationOutput = model(images, keys, call)
            return output

        return predict_views(run, inputs.images, keys, (height, width), self.views)

    def metric(self) -> Metric:
        """mIoU, mAcc and aAcc."""
        return SegmentationMetric(self.device, self.config.model.num_classes)

    def visualize(
        self, model: nn.Module, inputs: EvalInputs, prediction: SegmentationPrediction
    ) -> Tensor | None:
        """The first image of a batch, its labels and the prediction, side by side."""
        data = self.config.data
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (data.mean, data.std))
        image = (inputs.images[0][0] * std + mean).clamp(0, 1)
        return side_by_side(image, inputs.labels[0], prediction.labels[0])
