"""Object detection and instance segmentation: Mask R-CNN and Cascade Mask R-CNN on any backbone.

Legend: B images on canvases of h x w pixels.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from data_shards.augment.pixel_labels import PixelAugment
from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.metric import Metric
from launcher.tasks.detection.batch_targets import batch_targets
from launcher.tasks.detection.detections import EvalInputs
from launcher.tasks.detection.metric import DetectionMetric
from launcher.tasks.detection.options import DetectionOptions
from launcher.tasks.detection.pictures import batch_picture
from launcher.tasks.detection.prediction import BatchDetections
from launcher.tasks.norm_task import NormTask
from launcher.tasks.spec import StepOutput, TaskContext
from parallel.ranks.host import send
from swin_moe.detection.detector import DetectorLosses, DetectorOutput, build_detector
from swin_moe.detection.targets import Targets
from swin_moe.moe.overrides import RoutingOverrides


class TrainInputs(NamedTuple):
    """Images of a micro-batch and what is in them."""

    images: Tensor  # (B, 3, h, w) float32, 0 beyond an image
    sizes: Tensor  # (B, 2) int64: height and width of each image without padding
    targets: Targets


def step(engine: Any, inputs: TrainInputs, keys: Tensor) -> StepOutput:
    """The loss of a micro-batch: the sum of the losses of all heads."""
    losses: DetectorLosses = engine(inputs.images, inputs.sizes, keys, inputs.targets)
    return StepOutput(loss=losses.total, terms=losses.terms, moe=losses.moe)


class DetectionTask(NormTask):
    """Training of a detector.

    Args:
        config: of the run.
        context: of this rank.
    """

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        self.options, data = options_of(config, DetectionOptions), config.data
        model = build_detector(
            config.model,
            self.options.head,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(context.device)
        super().__init__(config, context.mesh, model)
        self.context, self.device = context, context.device
        self.normalize = PixelAugment(
            None, seed=config.seed, mean=data.mean, std=data.std, device=self.device
        )

    @property
    def pictured_batches(self) -> int:
        """One of each image, as a batch of evaluation has one."""
        return self.options.pictures

    def inputs(self, batch: Batch) -> TrainInputs:
        """The images and their objects."""
        images = self.normalize(batch["image"], batch["image_size"], batch.positions)
        sizes = send(batch["image_size"], self.device)
        return TrainInputs(images, sizes, batch_targets(batch, self.device))

    def step(self, engine: Any, inputs: TrainInputs, keys: Tensor) -> StepOutput:
        """The loss of a micro-batch."""
        return step(engine, inputs, keys)

    def eval_inputs(self, batch: Batch) -> EvalInputs:
        """The images, and how much they were scaled."""
        images = self.normalize(batch["image"], batch["image_size"], batch.positions)
        sizes = batch["image_size"]
        scales = sizes / batch["source_size"]
        return EvalInputs(images, send(sizes, self.device), send(scales, self.device), batch)

    def predict(
        self, model: nn.Module, inputs: EvalInputs, keys: Tensor, call: RoutingOverrides
    ) -> BatchDetections:
        """The detections of each image, in pixels of its own size."""
        output: DetectorOutput = model(inputs.images, inputs.sizes, keys, call=call, scales=inputs.scales)
        return BatchDetections(output.detections, output.moe)

    def metric(self) -> Metric:
        """COCO's figures of boxes and masks."""
        options = self.options
        classes, masks = self.config.model.num_classes, options.head.masks
        return DetectionMetric(classes, masks=masks, evaluator=options.evaluator)

    def visualize(self, model: nn.Module, inputs: EvalInputs, prediction: BatchDetections) -> Tensor:
        """The first image of a batch, its objects and the detections, side by side."""
        data, score = self.config.data, self.options.picture_score
        return batch_picture(inputs, prediction, data, self.context.classes, score)
